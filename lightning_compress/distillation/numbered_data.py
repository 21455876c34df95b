"""Any data module with numbered training samples, for caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_compress.distillation.indexed import TRANSFER_HOOKS, beside_rows, numbered
from lightning_compress.errors import CompressionError

LOADERS = ("val_dataloader", "test_dataloader", "predict_dataloader")


class NumberedData(L.LightningDataModule):
    """A data module like another one, but for its training samples, which carry their numbers.

    Args:
        data: the data module, with one training loader over a map-style dataset.
        transform: as in :class:`~lightning_compress.distillation.Indexed`.
        views: as in :class:`~lightning_compress.distillation.Indexed`.
        augmentation: as in :class:`~lightning_compress.distillation.Indexed`.

    Raises:
        CompressionError: something else than a data module.

    >>> from lightning_compress.zoo import Digits
    >>> data = NumberedData(Digits(batch_size=8))
    >>> data.setup("fit")
    >>> next(iter(data.train_dataloader())).rows.shape
    torch.Size([8])
    """

    def __init__(
        self,
        data: L.LightningDataModule,
        transform: Callable[[Any], Any] | None = None,
        *,
        views: int = 1,
        augmentation: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(data, L.LightningDataModule):
            raise CompressionError(
                f"NumberedData takes a data module, not a {type(data).__name__}; numbered(loader) takes a loader."
            )
        self.data = data
        self._options: dict[str, Any] = {"transform": transform, "views": views, "augmentation": augmentation}
        for name in (*LOADERS, *TRANSFER_HOOKS):
            if is_overridden(name, data):  # what the inner one does not have, this one must not have either
                own = getattr(data, name)
                self.__dict__[name] = partial(beside_rows, own) if name in TRANSFER_HOOKS else own

    def __getattr__(self, name: str) -> Any:
        """What a data module does not have in general, such as ``num_classes``, is the inner one's."""
        if name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    def prepare_data(self) -> None:
        """The inner one's."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """The inner one's, with the Trainer of this one."""
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def teardown(self, stage: str) -> None:
        """The inner one's."""
        self.data.teardown(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """The inner one's, numbered.

        Raises:
            CompressionError: not one loader.
        """
        loader = self.data.train_dataloader()
        if not isinstance(loader, DataLoader):
            raise CompressionError(f"NumberedData numbers one training DataLoader, not a {type(loader).__name__}.")
        return numbered(loader, **self._options)

    def state_dict(self) -> dict[str, Any]:
        """The inner one's."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inner one's."""
        self.data.load_state_dict(state_dict)

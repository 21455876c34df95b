"""What the data modules of the zoo share: three sets of tensors and their loaders."""

import math
from collections.abc import Sequence

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.errors import CompressionError


class TensorDataModule(LightningDataModule):
    """A data module held in memory; a subclass sets ``train``, ``validation`` and ``test`` in ``setup``.

    Args:
        batch_size: samples in a batch.
        num_workers: processes of each loader.

    Raises:
        CompressionError: an argument out of its range.
    """

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset

    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise CompressionError(f"batch_size={batch_size} holds no sample; use at least 1.")
        if num_workers < 0:
            raise CompressionError(f"num_workers={num_workers} is negative; use 0 to load in the main process.")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of the training part."""
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the validation part, in order."""
        return DataLoader(self.validation, self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test part, in order."""
        return DataLoader(self.test, self.batch_size, num_workers=self.num_workers)


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """The shares of training, validation and test, after a check that they are positive and sum to 1.

    Raises:
        CompressionError: they are not three, not positive, or do not sum to 1.

    >>> check_shares([0.6, 0.2, 0.2])
    (0.6, 0.2, 0.2)
    """
    if len(shares) != 3 or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise CompressionError(
            f"shares={tuple(shares)} do not divide the data; give three positive shares of training, validation and "
            "test that sum to 1, such as (0.6, 0.2, 0.2)."
        )
    train, validation, test = shares
    return train, validation, test

"""Samples that know their number, so that what a teacher says of them can be kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states


class IndexedBatch(NamedTuple):
    """A user's batch and the number of each sample and view in it; the steps and hooks of a fit get the batch alone."""

    batch: Any
    rows: Tensor


class Indexed(Dataset[IndexedBatch]):
    """A map-style dataset whose samples carry their numbers, in a fixed number of augmented views each.

    A view is a function of its number: the transform runs under random states seeded with it, so the teachers see the
    very input that the student will see. One view of a sample is drawn each time.

    Args:
        dataset: with a length.
        transform: augments a sample as the dataset returns it; random through torch, numpy or Python.
        views: augmented versions of each sample.
        augmentation: name of the augmentation, by which caches are told apart; None makes one from ``transform``.

    Raises:
        CompressionError: no samples, no views, or several without a transform.

    >>> from torch.utils.data import TensorDataset
    >>> sample = Indexed(TensorDataset(torch.zeros(3, 2)))[2]
    >>> sample.rows
    2
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        transform: Callable[[Any], Any] | None = None,
        *,
        views: int = 1,
        augmentation: str | None = None,
    ) -> None:
        if not isinstance(dataset, Sized) or len(dataset) == 0:
            raise CompressionError("Indexed needs a dataset with a length above 0: samples are found by their number.")
        if views < 1 or (views > 1 and transform is None):
            raise CompressionError(f"Indexed(views={views}): one view, or several with a transform that makes them.")
        self._dataset, self._transform, self.views = dataset, transform, views
        self._length = len(dataset)
        kind = "none" if transform is None else getattr(transform, "__qualname__", repr(transform))
        self.augmentation = f"{views} views, {kind if augmentation is None else augmentation}"

    @property
    def rows(self) -> int:
        """Samples times views."""
        return self._length * self.views

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> IndexedBatch:
        view = int(torch.randint(self.views, ())) if self.views > 1 else 0
        return self.row(index * self.views + view)

    def row(self, row: int) -> IndexedBatch:
        """One view of one sample: ``row`` is the sample's number times ``views``, plus the view's."""
        sample = self._dataset[row // self.views]
        if self._transform is not None:
            with isolated_random_states():
                torch.default_generator.manual_seed(row)
                if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    torch.cuda.manual_seed_all(row)  # before that, noting a seed for later takes a millisecond
                np.random.seed(row % 2**32)
                random.seed(row)
                sample = self._transform(sample)
        return IndexedBatch(sample, row)  # type: ignore[arg-type]  # the loader makes a tensor of the rows


class AllRows(Dataset[IndexedBatch]):
    """Every view of every sample, in order."""

    def __init__(self, indexed: Indexed) -> None:
        self._indexed = indexed

    def __len__(self) -> int:
        return self._indexed.rows

    def __getitem__(self, row: int) -> IndexedBatch:
        return self._indexed.row(row)


def numbered(
    loader: DataLoader[Any],
    transform: Callable[[Any], Any] | None = None,
    *,
    views: int = 1,
    augmentation: str | None = None,
) -> DataLoader[IndexedBatch]:
    """The same loader over numbered samples, in the same order.

    Args:
        loader: with a map-style dataset, in batches.
        transform: as in :class:`Indexed`.
        views: as in :class:`Indexed`.
        augmentation: as in :class:`Indexed`.

    Raises:
        CompressionError: no loader, one without batches, or as in :class:`Indexed`.

    >>> from torch.utils.data import TensorDataset
    >>> next(iter(numbered(DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=2)))).rows
    tensor([0, 1])
    """
    if not isinstance(loader, DataLoader):
        raise CompressionError(f"numbered(loader) takes a DataLoader, not a {type(loader).__name__}.")
    if loader.batch_sampler is None:
        raise CompressionError("numbered(loader) needs a loader that makes batches; this one has batch_size=None.")
    order: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if type(loader.batch_sampler) is BatchSampler:  # as parts, so that Lightning can make a distributed one of them
        order = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    return DataLoader(
        Indexed(loader.dataset, transform, views=views, augmentation=augmentation),
        collate_fn=_Collated(loader.collate_fn),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
        **order,
    )


class _Collated:
    """The user's own way to make a batch of samples; their numbers beside it."""

    def __init__(self, own: Callable[[list[Any]], Any]) -> None:
        self._own = own

    def __call__(self, samples: list[IndexedBatch]) -> IndexedBatch:
        rows = torch.tensor([int(sample.rows) for sample in samples])
        return IndexedBatch(self._own([sample.batch for sample in samples]), rows)


TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""What a module or a data module may do to a batch before the step gets it."""


def beside_rows(own: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``own`` makes of the user's batch, with its rows if it has them."""
    sample, rows = unwrap(batch)
    made = own(sample, *args, **kwargs)
    return made if rows is None else IndexedBatch(made, rows)


def unwrap(batch: Any) -> tuple[Any, Tensor | None]:
    """The user's batch, and the rows if it has them."""
    return (batch.batch, batch.rows) if isinstance(batch, IndexedBatch) else (batch, None)

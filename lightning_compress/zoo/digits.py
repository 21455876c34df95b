"""scikit-learn's handwritten digits as a LightningDataModule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch.utils.data import TensorDataset

from lightning_compress.errors import CompressionError
from lightning_compress.zoo.tensors import TensorDataModule, check_shares

Indices = NDArray[np.int64]


class Digits(TensorDataModule):
    """The 1,797 real 8x8 digits that scikit-learn carries: (1, 8, 8) float32 pictures, ten classes, nothing downloaded.

    The split is stratified and depends on ``seed`` alone; pixels are normalised by one mean and one standard
    deviation, those of the training part. With ``folds``, the folds partition the data: the test part is fold number
    ``fold``, and the rest is divided between training and validation in the ratio of their shares.

    Args:
        batch_size: pictures in a batch.
        seed: of the split.
        shares: of training, validation and test; they sum to 1. With ``folds`` the test share has no effect.
        folds: number of folds, at least 2, or None for one split by ``shares``.
        fold: which fold is the test part, counted from 0.
        num_workers: processes of each loader.

    Raises:
        CompressionError: an argument out of its range.

    >>> digits = Digits(batch_size=32, seed=0)
    >>> digits.setup()
    >>> pictures, classes = next(iter(digits.train_dataloader()))
    >>> pictures.shape, classes.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    num_classes = 10
    input_shape = (1, 8, 8)

    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        shares: Sequence[float] = (0.6, 0.2, 0.2),
        folds: int | None = None,
        fold: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        _check_folds(folds, fold)
        self.seed = seed
        self.shares = check_shares(shares)
        self.folds = folds
        self.fold = fold

    def setup(self, stage: str | None = None) -> None:
        """Loads, splits and normalises the pictures; the same for every stage."""
        pixels, classes = load_digits(return_X_y=True)
        self.indices = self._split(classes)
        train_pixels = pixels[self.indices[0]]
        self.mean, self.std = float(train_pixels.mean()), float(train_pixels.std())
        pictures = torch.from_numpy((pixels - self.mean) / self.std).float().view(-1, *self.input_shape)
        targets = torch.from_numpy(classes).long()
        self.train, self.validation, self.test = (TensorDataset(pictures[i], targets[i]) for i in self.indices)

    def _split(self, classes: NDArray[Any]) -> tuple[Indices, Indices, Indices]:
        everything = np.arange(len(classes))
        train_share, validation_share, test_share = self.shares
        if self.folds is None:
            rest, test = train_test_split(everything, test_size=test_share, stratify=classes, random_state=self.seed)
        else:
            folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
            rest, test = list(folds.split(everything, classes))[self.fold]
        share = validation_share / (train_share + validation_share)
        train, validation = train_test_split(rest, test_size=share, stratify=classes[rest], random_state=self.seed)
        return np.sort(train), np.sort(validation), np.sort(test)


def _check_folds(folds: int | None, fold: int) -> None:
    if folds is None:
        if fold != 0:
            raise CompressionError(f"fold={fold} without folds; say how many there are, such as folds=5.")
        return
    if not 2 <= folds <= 100:
        raise CompressionError(f"folds={folds} is outside 2 to 100: every fold needs pictures of every class.")
    if not 0 <= fold < folds:
        raise CompressionError(f"fold={fold} is not one of folds={folds}; they are counted from 0 to {folds - 1}.")

"""Unlabelled samples that the student learns from the teachers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from lightning_compress.distillation.indexed import unwrap
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states


class TransferSet:
    """A set on which soft targets are given, besides the fit's own labelled batches.

    The batch of a step is a function of the step's number alone, so a resumed fit sees the same ones.

    Args:
        inputs: a tensor (samples, ...) or a map-style dataset of tensors or arrays; of tuples the first entry counts.
        batch_size: samples in a step.
        mixup: parameter of the Beta distribution of convex combinations of two samples each (Zhang et al., "mixup",
            ICLR 2018, arXiv:1710.09412); 0 leaves the samples as they are.
        seed: of the order and the combinations.

    Raises:
        CompressionError: an empty set, samples that are no tensors, or an argument out of its range.

    >>> TransferSet(torch.zeros(10, 3), batch_size=4).batch(0).shape
    torch.Size([4, 3])
    """

    def __init__(
        self, inputs: Tensor | Dataset[Any], batch_size: int = 64, *, mixup: float = 0.0, seed: int = 0
    ) -> None:
        if not hasattr(inputs, "__len__") or len(inputs) == 0:
            raise CompressionError("The transfer set is empty: it needs samples, and a length.")
        if isinstance(inputs, DataLoader):
            raise CompressionError("TransferSet draws its own batches: pass the dataset, loader.dataset.")
        if batch_size < 1 or mixup < 0:
            raise CompressionError(f"TransferSet(batch_size={batch_size}, mixup={mixup}): at least 1, and at least 0.")
        self._inputs: Any = inputs.tensors[0] if isinstance(inputs, TensorDataset) else inputs
        self._length = len(self._inputs)
        self._size, self._mixup, self._seed = min(batch_size, self._length), mixup, seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._check_samples()

    def batch(self, step: int, process: int = 0, processes: int = 1) -> Tensor:
        """The inputs of a step; each process has its own."""
        number = step * processes + process
        in_pass = self._length // self._size
        places = self._permutation(number // in_pass)[(number % in_pass) * self._size :][: self._size]
        inputs = self._get(places)
        return self._mixed(inputs, number) if self._mixup else inputs

    def _check_samples(self) -> None:
        with isolated_random_states():
            sample = self._sample(0)
        if not isinstance(sample, Tensor | np.ndarray):
            raise CompressionError(
                f"TransferSet: sample 0 is of type {type(sample).__name__}. The student gets one tensor of inputs: let "
                "the dataset return tensors, or tuples that begin with one."
            )
        if self._mixup and not torch.as_tensor(sample).is_floating_point():
            raise CompressionError(
                f"TransferSet(mixup={self._mixup}): samples of type {sample.dtype} have nothing between them. Leave "
                "mixup out."
            )

    def _get(self, places: Tensor) -> Tensor:
        if isinstance(self._inputs, Tensor):
            found: Tensor = self._inputs[places]
            return found
        inputs: Tensor = default_collate([self._sample(int(place)) for place in places])
        return inputs

    def _sample(self, number: int) -> Any:
        sample, _ = unwrap(self._inputs[number])
        return sample[0] if isinstance(sample, tuple | list) else sample

    def _permutation(self, number: int) -> Tensor:
        if self._order[0] != number:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
            self._order = number, torch.randperm(self._length, generator=generator)
        return self._order[1]

    def _mixed(self, inputs: Tensor, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number + 2**40)
        uniform = torch.rand(len(inputs), generator=generator)
        share = uniform if self._mixup == 1 else _beta(self._mixup, uniform)
        share = share.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
        return share * inputs + (1 - share) * inputs[torch.randperm(len(inputs), generator=generator)]


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Quantiles of Beta(alpha, alpha), from a table of its cumulative density."""
    grid = torch.linspace(0, 1, 2001)[1:-1]
    density = (grid * (1 - grid)) ** (alpha - 1)
    cumulative = density.cumsum(0) / density.sum()
    return grid[torch.searchsorted(cumulative, uniform).clamp(max=len(grid) - 1)]

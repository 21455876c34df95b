"""Sums over what a layer has read, and what follows from them: zero share, mean, variance, second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.surgery.patches import input_rows, patch_width, second_moments_of


@dataclass
class InputStatistics:
    """Sums over everything that a layer has read, in float64, for each input feature (Linear) or input channel (Conv).

    Attributes:
        count: values seen of each feature: samples, times positions where there are any.
        zeros: of them, how many were exactly zero, shape (features,).
        total: their sum, shape (features,).
        squares: the sum of their squares, shape (features,).
        moments: the sum of x xT over the vectors that the weight is multiplied with, shape (n, n): n is the number of
            features, for a convolution times its kernel's positions, in the order of ``weight.flatten(1)``. None if not
            gathered.
        rows: number of those vectors.
    """

    count: int
    zeros: Tensor
    total: Tensor
    squares: Tensor
    moments: Tensor | None = None
    rows: int = 0

    @classmethod
    def empty(cls, layer: nn.Module, *, second_moments: bool = False) -> InputStatistics:
        """Of nothing seen yet, on the layer's device."""
        device, features = layer_weight(layer).device, input_features(layer)
        zeros, total, squares = torch.zeros(3, features, dtype=torch.float64, device=device).unbind()
        width = patch_width(layer) if second_moments else 0
        moments = torch.zeros(width, width, dtype=torch.float64, device=device) if second_moments else None
        return cls(0, zeros, total, squares, moments)

    @property
    def zero_share(self) -> Tensor:
        """Share of values that are exactly zero, in [0, 1]: APoZ (Hu et al., "Network Trimming", 2016)."""
        return self.zeros / self._seen()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.total / self._seen()

    @property
    def variance(self) -> Tensor:
        """The variance, divided by the count."""
        return (self.squares / self._seen() - self.mean.square()).clamp(min=0)

    @property
    def second_moment(self) -> Tensor:
        """C = E[x xT] of the vectors that the weight is multiplied with."""
        if self.moments is None:
            raise CompressionError("Second moments were not gathered. Ask for second_moments=True.")
        self._seen()
        return self.moments / self.rows

    def merge(self, other: InputStatistics) -> InputStatistics:
        """Of all that either has seen."""
        if self.zeros.shape != other.zeros.shape or (self.moments is None) != (other.moments is None):
            raise CompressionError(
                f"Statistics of {self.zeros.numel()} and {other.zeros.numel()} features, or with and without second "
                "moments, cannot be merged."
            )
        moments = self.moments + other.moments if self.moments is not None and other.moments is not None else None
        zeros, total, squares = self.zeros + other.zeros, self.total + other.total, self.squares + other.squares
        return InputStatistics(self.count + other.count, zeros, total, squares, moments, self.rows + other.rows)

    def add(self, layer: nn.Module, value: Tensor) -> None:
        """Count one input of ``layer``."""
        rows = input_rows(layer, value.detach())
        over = [dim for dim in range(rows.dim()) if dim != 1]
        self.count += rows.numel() // max(1, rows.shape[1])
        self.zeros += (rows == 0).sum(over)
        self.total += rows.sum(over, dtype=torch.float64)
        self.squares += rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(over, dtype=torch.float64)
        if self.moments is not None:
            self.rows += second_moments_of(layer, rows, into=self.moments)

    def keep(self, kept: Tensor) -> InputStatistics:
        """Of the features ``kept`` alone."""
        kept, moments = kept.to(self.zeros.device), self.moments
        if moments is not None:
            positions = moments.shape[0] // self.zeros.numel()
            spread = (kept[:, None] * positions + torch.arange(positions, device=kept.device)).flatten()
            moments = moments[spread][:, spread]
        return InputStatistics(self.count, self.zeros[kept], self.total[kept], self.squares[kept], moments, self.rows)

    def to(self, device: torch.device) -> InputStatistics:
        """A copy on ``device``."""
        moments = None if self.moments is None else self.moments.to(device, copy=True)
        zeros, total, squares = (part.to(device, copy=True) for part in (self.zeros, self.total, self.squares))
        return InputStatistics(self.count, zeros, total, squares, moments, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and copies of the tensors, for :meth:`from_state`."""
        return dict(vars(self.to(self.zeros.device)))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> InputStatistics:
        """What :meth:`state_dict` gave.

        Raises:
            CompressionError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(state) != names:
            raise CompressionError(f"Statistics with the fields {sorted(state)}; expected {sorted(names)}.")
        return cls(**state)

    def parts(self) -> list[Tensor]:
        """All the sums, as float64 tensors that may be added to another's; for :meth:`with_parts`."""
        numbers = self.zeros.new_tensor([self.count, self.rows])
        return [numbers, self.zeros, self.total, self.squares] + ([] if self.moments is None else [self.moments])

    def with_parts(self, parts: Sequence[Tensor]) -> InputStatistics:
        """Statistics of the same shapes with other sums, each of any shape with as many entries."""
        numbers, zeros, total, squares, *rest = parts
        count, rows = (round(number) for number in numbers.tolist())
        moments = None if self.moments is None else rest[0].view_as(self.moments)
        return InputStatistics(count, zeros, total, squares, moments, rows)

    def _seen(self) -> int:
        if self.count == 0:
            raise CompressionError("The layer has not read anything yet. Gather statistics first.")
        return self.count


def layer_weight(layer: nn.Module) -> Tensor:
    """The weight of a Linear or convolution."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def input_features(layer: nn.Module) -> int:
    """Its input features or channels."""
    features = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    assert isinstance(features, int)
    return features

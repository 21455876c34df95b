"""Sums over what a layer has read, and what follows from them: zero share, mean, variance, second moments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.surgery.patches import input_rows, patch_width, second_moments_of

SUMS = ("zeros", "total", "squares")
"""What is counted if nothing else is asked for; ``"ranks"`` only on request."""
RANKED_SAMPLES = 4
"""Samples of each input whose feature maps' ranks are counted."""


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
        ranks: the sum of the feature maps' ranks, shape (features,).
        maps: number of maps that were ranked, of each feature.
        sums: which of zeros, total, squares and ranks are counted; asking for another is an error.
    """

    count: int
    zeros: Tensor
    total: Tensor
    squares: Tensor
    moments: Tensor | None = None
    rows: int = 0
    ranks: Tensor | None = None
    maps: int = 0
    sums: tuple[str, ...] = SUMS

    @classmethod
    def empty(cls, layer: nn.Module, *, second_moments: bool = False, sums: Collection[str] = SUMS) -> InputStatistics:
        """Of nothing seen yet, on the layer's device."""
        device, features = layer_weight(layer).device, input_features(layer)
        zeros, total, squares, ranks = torch.zeros(4, features, dtype=torch.float64, device=device).unbind()
        width = patch_width(layer) if second_moments else 0
        moments = torch.zeros(width, width, dtype=torch.float64, device=device) if second_moments else None
        ranked = ranks if "ranks" in sums else None
        return cls(0, zeros, total, squares, moments, ranks=ranked, sums=tuple(sums))

    @property
    def zero_share(self) -> Tensor:
        """Share of values that are exactly zero, in [0, 1]: APoZ (Hu et al., "Network Trimming", 2016)."""
        return self._counted("zeros") / self._seen()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._counted("total") / self._seen()

    @property
    def variance(self) -> Tensor:
        """The variance, divided by the count."""
        return (self.mean_square - self.mean.square()).clamp(min=0)

    @property
    def mean_square(self) -> Tensor:
        """The mean of the squares."""
        return self._counted("squares") / self._seen()

    @property
    def mean_rank(self) -> Tensor:
        """The mean rank of the feature maps; of features without positions the share of values that are not zero."""
        self._seen()
        return self._counted("ranks") / max(1, self.maps)

    @property
    def second_moment(self) -> Tensor:
        """C = E[x xT] of the vectors that the weight is multiplied with."""
        if self.moments is None:
            raise CompressionError("Second moments were not gathered. Ask for second_moments=True.")
        self._seen()
        return self.moments / self.rows

    def merge(self, other: InputStatistics) -> InputStatistics:
        """Of all that either has seen."""
        mine, theirs = self.parts(), other.parts()
        if self.sums != other.sums or [one.shape for one in mine] != [one.shape for one in theirs]:
            raise CompressionError(
                f"Statistics of {self.zeros.numel()} and {other.zeros.numel()} features, or with and without second "
                "moments, cannot be merged."
            )
        return self.with_parts([one + two for one, two in zip(mine, theirs, strict=True)])

    def add(self, layer: nn.Module, value: Tensor) -> None:
        """Count one input of ``layer``."""
        rows = input_rows(layer, value.detach())
        over = [dim for dim in range(rows.dim()) if dim != 1]
        self.count += rows.numel() // max(1, rows.shape[1])
        if "zeros" in self.sums:
            self.zeros += _zeros(rows, over)
        if "total" in self.sums:
            self.total += rows.sum(over, dtype=torch.float64)
        if "squares" in self.sums:
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
            self.squares += wide.square().sum(over, dtype=torch.float64)
        if self.ranks is not None:
            self.maps += min(len(rows), RANKED_SAMPLES)
            self.ranks += _ranks(rows[:RANKED_SAMPLES])
        if self.moments is not None:
            self.rows += second_moments_of(layer, rows, into=self.moments)

    def keep(self, kept: Tensor) -> InputStatistics:
        """Of the features ``kept`` alone."""
        kept, moments = kept.to(self.zeros.device), self.moments
        if moments is not None:
            positions = moments.shape[0] // self.zeros.numel()
            spread = (kept[:, None] * positions + torch.arange(positions, device=kept.device)).flatten()
            moments = moments[spread][:, spread]
        return replace(
            self,
            zeros=self.zeros[kept],
            total=self.total[kept],
            squares=self.squares[kept],
            moments=moments,
            ranks=None if self.ranks is None else self.ranks[kept],
        )

    def to(self, device: torch.device) -> InputStatistics:
        """A copy on ``device``."""
        own: dict[str, Any] = {
            name: one.to(device, copy=True) for name, one in vars(self).items() if isinstance(one, Tensor)
        }
        return replace(self, **own)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and copies of the tensors, for :meth:`from_state`."""
        return {**vars(self.to(self.zeros.device)), "sums": list(self.sums)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> InputStatistics:
        """What :meth:`state_dict` gave.

        Raises:
            CompressionError: a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(state) != names:
            raise CompressionError(f"Statistics with the fields {sorted(state)}; expected {sorted(names)}.")
        return cls(**{**state, "sums": tuple(state["sums"])})

    def parts(self) -> list[Tensor]:
        """All the sums, as float64 tensors that may be added to another's; for :meth:`with_parts`."""
        numbers = self.zeros.new_tensor([self.count, self.rows, self.maps])
        optional = [one for one in (self.moments, self.ranks) if one is not None]
        return [numbers, self.zeros, self.total, self.squares, *optional]

    def with_parts(self, parts: Sequence[Tensor]) -> InputStatistics:
        """Statistics of the same shapes with other sums, each of any shape with as many entries."""
        numbers, zeros, total, squares, *rest = parts
        count, rows, maps = (round(number) for number in numbers.tolist())
        moments = None if self.moments is None else rest.pop(0).view_as(self.moments)
        ranks = None if self.ranks is None else rest.pop(0)
        return InputStatistics(count, zeros, total, squares, moments, rows, ranks, maps, self.sums)

    def _counted(self, name: str) -> Tensor:
        value = getattr(self, name)
        if name not in self.sums or value is None:
            raise CompressionError(f"{name!r} has not been counted, only {list(self.sums)}. Ask for it with sums=.")
        assert isinstance(value, Tensor)
        return value

    def _seen(self) -> int:
        if self.count == 0:
            raise CompressionError("The layer has not read anything yet. Gather statistics first.")
        return self.count


def _zeros(rows: Tensor, over: list[int]) -> Tensor:
    """Number of zeros of each feature: three times as fast as by comparing."""
    values = rows.numel() // max(1, rows.shape[1])
    return values - rows.sign().abs_().sum(over, dtype=torch.float64)


def _ranks(rows: Tensor) -> Tensor:
    """Sum over the samples of the ranks of their feature maps, each as a matrix of its rows and all other positions."""
    if rows.dim() == 2:
        return (rows != 0).sum(0)
    maps = rows.flatten(3) if rows.dim() > 3 else rows.unsqueeze(-1)
    ranks: Tensor = torch.linalg.matrix_rank(maps.float())
    return ranks.sum(0)


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

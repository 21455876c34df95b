"""Quantizers of weights: transforms for :class:`~lightning_compress.quantization.transparent.TransparentWeights`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid, codes_of, fake_quantize, learned_fake_quantize
from lightning_compress.quantization.observation import Observer, observed_range
from lightning_compress.quantization.observers.minmax import minmax
from lightning_compress.quantization.quantizer import Quantizer


@dataclass(frozen=True)
class Layout:
    """Which weights share a scale.

    Attributes:
        axis: the dimension of the output channels; None: one scale for the tensor.
        group: inputs that share a scale within a channel; None: all of them.
    """

    axis: int | None = 0
    group: int | None = None

    def view(self, weight: Tensor) -> Tensor:
        """The weight with its scales along :attr:`axis`: groups become rows."""
        return weight if self.group is None else weight.reshape(-1, self.group)

    def rows(self, weight: Tensor) -> Tensor:
        """All values of each scale, shape (scales, values)."""
        weight = self.view(weight)
        return weight.reshape(1, -1) if self.axis is None else weight.movedim(self.axis, 0).flatten(1)

    def scales(self, weight: Tensor) -> int:
        """How many scales there are."""
        return len(self.rows(weight))

    def check(self, name: str, weight: Tensor) -> None:
        """Refuse groups that do not divide the inputs."""
        if self.group is not None and (self.axis != 0 or (weight.numel() // weight.shape[0]) % self.group):
            raise CompressionError(
                f"{name!r} has {weight.numel() // weight.shape[0]} inputs, which groups of {self.group} do not divide "
                f"(or it is a transposed convolution). Use another group size, granularity='channel', or leave it out: "
                f"exclude=({name.rpartition('.')[0]!r},)."
            )


class ObservedWeight(Quantizer):
    """The scale follows the weights: the largest of each channel, or what another observer makes of them.

    Minmax is taken anew at each read; costlier observers at the start, at each :meth:`refresh` and at other bits.

    >>> quantizer = ObservedWeight(Grid(2), Layout(None), torch.tensor([[1.0, -0.4]]))
    >>> quantizer.enabled = True
    >>> quantizer(torch.tensor([[1.0, -0.4]]))
    tensor([[1., 0.]])
    """

    def __init__(self, grid: Grid, layout: Layout, weight: Tensor, observer: Observer = minmax) -> None:
        super().__init__(grid, layout.scales(weight))
        self.layout, self.observer = layout, observer

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight, rounded."""
        if not self.enabled:
            return weight
        if self.zero_point.device != weight.device:
            self.to(weight.device)
        rows = self.layout.view(weight)
        scale = self._scale(rows)
        axis = self.layout.axis
        rounded = fake_quantize(rows, scale, self.zero_point, self.grid, axis)
        return rounded if self.layout.group is None else rounded.view_as(weight)

    def _scale(self, rows: Tensor) -> Tensor:
        if self.frozen or self.observer is not minmax:
            if not self.ready:
                self._set(rows)
            return self.scale
        axis = self.layout.axis
        if not self.grid.symmetric:
            self._set(rows)
            return self.scale
        over = None if axis is None else [dim for dim in range(rows.dim()) if dim != axis]
        largest = torch.linalg.vector_norm(rows.detach(), float("inf"), dim=over).float()
        scale = (largest / self.grid.high).clamp(min=SMALLEST_SCALE)
        return cast(Tensor, scale.view(1) if axis is None else scale)

    def _set(self, rows: Tensor) -> None:
        with torch.no_grad():
            rows = rows.detach()
            rows = rows.reshape(1, -1) if self.layout.axis is None else rows.movedim(self.layout.axis, 0).flatten(1)
            self.scale, self.zero_point = self.grid.parameters(*observed_range(self.observer, rows, self.grid))
        self.ready = True

    def refresh(self, weight: Tensor) -> None:
        """Look at the weights again, unless frozen."""
        if not self.frozen:
            rows = self.layout.view(weight.detach())
            if self.observer is minmax:
                self.scale, self.ready = self._scale(rows), True
            else:
                self._set(rows)

    def set_grid(self, grid: Grid) -> None:
        """The next read, or the caller's :meth:`refresh`, finds the scale."""
        super().set_grid(grid)
        self.ready = self.ready and self.frozen

    def parameters_for(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are for this weight."""
        return self._scale(self.layout.view(weight.detach())), self.zero_point

    def codes(self, weight: Tensor) -> Tensor:
        """The integer codes of the weight, of its shape."""
        scale, zero_point = self.parameters_for(weight)
        rows = self.layout.view(self.shaped(weight.detach()))
        return codes_of(rows, scale, zero_point, self.grid, self.layout.axis).view(weight.shape)

    def shaped(self, weight: Tensor) -> Tensor:
        """What is rounded: the weight itself."""
        return weight

    def keep(self, kept: Tensor, weight: Tensor) -> None:
        """The weight has shrunk; ``kept`` are the rows of it, along the axis."""
        if len(self.scale) == self.layout.scales(weight):
            return
        if self.layout.group is None and self.layout.axis is not None and len(kept) == self.layout.scales(weight):
            self.scale, self.zero_point = (part[kept.to(part.device)] for part in (self.scale, self.zero_point))
        else:
            self.scale, self.ready = torch.ones(self.layout.scales(weight), device=weight.device), False
            self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)


class LearnedWeight(ObservedWeight):
    """LSQ: the scale is a Parameter with a gradient of its own (Esser et al., ICLR 2020).

    It begins at ``2 E|w| / sqrt(Q)``, or where it covers the largest weight if that is less (at 8 bits the formula
    wastes three of them); LSQ+ (Bhalgat et al., CVPR workshops 2020) at
    ``max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)``. Channels of zeros, such as those of a layer that begins at
    zero, begin like the others: a scale of nothing would never grow. Other bits begin anew.
    """

    learned = ("scale",)

    def __init__(self, grid: Grid, layout: Layout, weight: Tensor, *, plus: bool = False) -> None:
        super().__init__(grid, layout, weight)
        self.scale = nn.Parameter(self.scale)
        self.plus = plus
        self.zero = torch.zeros(len(self.scale))

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight, rounded."""
        if not self.enabled:
            return weight
        rows = self.layout.view(weight)
        if not self.ready:
            self._set(rows)
        if self.zero.device != weight.device or self.zero.shape != self.scale.shape:
            self.to(weight.device)
            self.zero = torch.zeros_like(self.scale)
        axis = self.layout.axis
        if self.frozen:
            rounded = fake_quantize(rows, self.scale.detach(), self.zero_point, self.grid, axis)
        else:
            count = weight.numel() / len(self.scale)
            rounded = learned_fake_quantize(
                rows, self.scale, self.zero, self.grid, axis, (count * self.grid.high) ** -0.5
            )
        return rounded if self.layout.group is None else rounded.view_as(weight)

    def _set(self, rows: Tensor) -> None:
        with torch.no_grad():
            self.scale.data = self._computed(rows.detach())
        self.ready = True

    def _computed(self, rows: Tensor) -> Tensor:
        rows = rows.reshape(1, -1) if self.layout.axis is None else rows.movedim(self.layout.axis, 0).flatten(1)
        rows, high = rows.float(), self.grid.high
        largest = rows.abs().amax(1)
        if self.plus:
            mean, std = rows.mean(1), rows.std(1, correction=0)
            scale = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / (1 << (self.grid.bits - 1))
        else:
            scale = torch.minimum(2 * rows.abs().mean(1) / high**0.5, largest / high)
        alive = largest > 0
        usual = scale[alive].mean() if bool(alive.any()) else rows.shape[1] ** -0.5 / high
        return torch.where(alive, scale, usual).clamp(min=SMALLEST_SCALE)

    def refresh(self, weight: Tensor) -> None:
        """Nothing: the scale is learned."""

    def set_grid(self, grid: Grid) -> None:
        """The next read finds a scale to begin with."""
        self.ready = self.ready and grid == self.grid
        self.grid = grid

    def parameters_for(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are."""
        if not self.ready:
            self._set(self.layout.view(weight.detach()))
        return self.scale.detach(), self.zero_point

    def keep(self, kept: Tensor, weight: Tensor) -> None:
        """As for all, and the Parameter stays one."""
        scale = self.scale
        self.scale = scale.detach()
        super().keep(kept, weight)
        self.zero = torch.zeros_like(self.scale)
        self.scale = scale if len(self.scale) == len(scale) else nn.Parameter(self.scale)


class TanhWeight(ObservedWeight):
    """DoReFa: ``tanh(w)`` is rounded, so that large weights crowd together (Zhou et al., 2016).

    Two things differ from the paper: the result keeps the size of the weights instead of filling [-1, 1], and the grid
    has a level at zero, so that pruned weights stay pruned.
    """

    def shaped(self, weight: Tensor) -> Tensor:
        """What is rounded."""
        return torch.tanh(weight)

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight, rounded."""
        return super().__call__(self.shaped(weight)) if self.enabled else weight

    def refresh(self, weight: Tensor) -> None:
        """Look at the weights again."""
        super().refresh(self.shaped(weight.detach()))

    def parameters_for(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for this weight."""
        return super().parameters_for(self.shaped(weight.detach()))


def build_weight_quantizer(
    scale: str, grid: Grid, layout: Layout, weight: Tensor, observer: Observer
) -> ObservedWeight:
    """The quantizer that ``scale`` names."""
    if scale in ("lsq", "lsq+"):
        return LearnedWeight(grid, layout, weight, plus=scale == "lsq+")
    if scale in ("pact", "dorefa"):
        return TanhWeight(grid, layout, weight, minmax)
    return ObservedWeight(grid, layout, weight, observer)

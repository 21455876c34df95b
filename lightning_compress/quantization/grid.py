"""Grids of integer codes, and rounding to them: vectorized passes or ATen's fake quantization in eager mode, by the
device; plain arithmetic where code is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.vectorized import vectorized_fake_quantize
from lightning_compress.values import is_whole

SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class Grid:
    """Integer codes ``low`` to ``high``; a value is ``(code - zero_point) * scale``.

    Symmetric grids have no code without a counterpart (-127 to 127 at 8 bits): a BatchNorm with a negative factor can
    be folded into them. Affine ones are unsigned (0 to 255), as CPUs are fast at.

    Attributes:
        bits: 2 to 8.
        symmetric: zero point 0, signed codes.
        narrow: a symmetric grid without the lowest code.

    Raises:
        CompressionError: bits out of range.

    >>> Grid(8).low, Grid(8).high, Grid(4, symmetric=False).high
    (-127, 127, 15)
    """

    bits: int
    symmetric: bool = True
    narrow: bool = True

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The highest code."""
        return (1 << (self.bits - int(self.symmetric))) - 1

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point (int32) that cover the range, zero included; of its shape.

        >>> [float(x) for x in Grid(8, symmetric=False).parameters(torch.tensor(-1.0), torch.tensor(1.55))]
        [0.009999999776482582, 100.0]
        """
        if self.symmetric:
            scale = torch.maximum(low.abs(), high.abs()) / self.high
            return scale.clamp(min=SMALLEST_SCALE), torch.zeros_like(scale, dtype=torch.int32)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (self.high - self.low)).clamp(min=SMALLEST_SCALE)
        zero_point = (self.low - (low / scale).round()).clamp(self.low, self.high)
        return scale, zero_point.to(torch.int32)


def check_bits(bits: Any, name: str = "bits") -> int:
    """``bits`` itself.

    Raises:
        CompressionError: not an integer from 2 to 8; the message has the way out.
    """
    if not is_whole(bits) or not 2 <= bits <= 8:
        hint = " One bit: BinaryConnect; two with trained levels: TernaryWeights." if bits == 1 else ""
        raise CompressionError(f"{name}={bits!r} is not a whole number from 2 to 8.{hint}")
    return int(bits)


def fake_quantize(value: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None = None) -> Tensor:
    """``value`` rounded to the grid; gradients pass where it lies inside.

    Args:
        value: any shape, floating-point.
        scale: of shape (1,), or (value.shape[axis],).
        zero_point: int32, likewise.
        grid: the codes.
        axis: dimension with a scale for each entry; None for one scale.

    >>> fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor([0.5]), torch.tensor([0], dtype=torch.int32), Grid(4))
    tensor([0.5000, 3.5000])
    """
    if torch.compiler.is_compiling():
        return plain_fake_quantize(value, scale, zero_point, grid, axis)
    if value.device.type == "cpu":
        return vectorized_fake_quantize(value, scale.detach(), zero_point, grid.low, grid.high, axis)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(value, scale, zero_point, grid.low, grid.high)
    return torch.fake_quantize_per_channel_affine(value, scale, zero_point, axis, grid.low, grid.high)


def plain_fake_quantize(
    value: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None = None
) -> Tensor:
    """The same in plain arithmetic, which compilers fuse; equal to ATen's result.

    >>> plain_fake_quantize(torch.tensor([0.3]), torch.tensor([0.2]), torch.tensor([0], dtype=torch.int32), Grid(4))
    tensor([0.4000])
    """
    scale, zero_point = (_along(part, value, axis) for part in (scale, zero_point))
    code = torch.round(value.detach().float() * (1.0 / scale) + 0.0) + zero_point
    inside = (code >= grid.low) & (code <= grid.high)
    rounded = ((code.clamp(grid.low, grid.high) - zero_point) * scale).to(value.dtype)
    return rounded + (value - value.detach()) * inside  # the value exactly, and the straight-through gradient


def codes_of(value: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None = None) -> Tensor:
    """The integer codes (int16) of ``value``.

    >>> codes_of(torch.tensor([0.26, -9.0]), torch.tensor([0.5]), torch.tensor([0]), Grid(4)).tolist()
    [1, -7]
    """
    scale, zero_point = (_along(part, value, axis) for part in (scale, zero_point))
    code = torch.round(value.detach().float() * (1.0 / scale)) + zero_point
    return code.clamp(grid.low, grid.high).to(torch.int16)


def learned_fake_quantize(
    value: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None, gradient_scale: float
) -> Tensor:
    """``value`` rounded to a grid whose scale (and zero point, if it wants a gradient) is learned.

    The gradient of the scale is that of LSQ: the rounding error inside the grid, its end outside, times
    ``gradient_scale``. Esser et al., "Learned Step Size Quantization", ICLR 2020.

    Args:
        value: any shape.
        scale: above 0; shape (1,), or (value.shape[axis],).
        zero_point: float, likewise; rounded in the forward.
        grid: the codes.
        axis: see :func:`fake_quantize`.
        gradient_scale: factor of the gradients of scale and zero point.
    """
    low, high = grid.low, grid.high
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        return vectorized_fake_quantize(value, scale, zero_point, low, high, axis, gradient_scale)
    if torch.compiler.is_compiling() or not _HAS_NATIVE or value.dtype != torch.float32:
        return plain_learned_fake_quantize(value, scale, zero_point, grid, axis, gradient_scale)
    if axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(value, scale, zero_point, low, high, gradient_scale)
    return torch._fake_quantize_learnable_per_channel_affine(value, scale, zero_point, axis, low, high, gradient_scale)


def plain_learned_fake_quantize(
    value: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None, gradient_scale: float
) -> Tensor:
    """The same in plain arithmetic; also where torch lacks the private operator."""
    scale, zero_point = (
        _along(part.detach() + (part - part.detach()) * gradient_scale, value, axis) for part in (scale, zero_point)
    )
    zero_point = _round_through(zero_point).clamp(grid.low, grid.high)
    code = _round_through(value / scale) + zero_point
    return ((code.clamp(grid.low, grid.high) - zero_point) * scale).to(value.dtype)


_HAS_NATIVE = hasattr(torch, "_fake_quantize_learnable_per_tensor_affine") and hasattr(
    torch, "_fake_quantize_learnable_per_channel_affine"
)


def _round_through(value: Tensor) -> Tensor:
    return value.detach().round() + (value - value.detach())


def _along(part: Tensor, value: Tensor, axis: int | None) -> Tensor:
    """``part`` (one number for each entry of ``axis``) in a shape that broadcasts against ``value``."""
    if axis is None:
        return part
    return part.view([-1 if dim == axis else 1 for dim in range(value.dim())])

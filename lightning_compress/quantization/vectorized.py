"""Rounding to a grid in a few vectorized passes, for processors: ATen takes the numbers one by one there, which takes
several times as long. In single precision and below the results are the same, bit for bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)
_Numbers: TypeAlias = Tensor | float


def vectorized_fake_quantize(
    value: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    axis: int | None = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """``value`` rounded to the codes ``low`` to ``high``; gradients pass where it lies inside.

    Scale and zero point get LSQ's gradients, times ``gradient_scale``, if they require any.

    Args:
        value: on the CPU, any shape, floating-point.
        scale: above 0; shape (1,), or (value.shape[axis],).
        zero_point: whole numbers, likewise; those of floating-point are rounded.
        low: the lowest code; below 0 the zero point is 0.
        high: the highest.
        axis: dimension with a scale for each entry; None for one scale.
        gradient_scale: see above.

    >>> vectorized_fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor([0.5]), torch.tensor([0]), -7, 7)
    tensor([0.5000, 3.5000])
    """
    if torch.is_grad_enabled() and (value.requires_grad or scale.requires_grad or zero_point.requires_grad):
        return _Rounding.apply(value, scale, zero_point, low, high, axis, gradient_scale)  # type: ignore[no-any-return, no-untyped-call]
    return _rounded(value, *_numbers(scale, zero_point, low, high, value, axis), low, high)


class _Rounding(torch.autograd.Function):
    """Keeps what it is given and nothing that it returns: a residual add may write into that. A single scale is kept as
    a number: an observer moves it on when its layer is called again.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None, factor: float
    ) -> Tensor:
        step, zero = ctx.numbers = _numbers(scale, zero_point, low, high, value, axis)
        ctx.save_for_backward(value)
        ctx.rest = low, high, axis, factor
        return _rounded(value, step, zero, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        step, zero = ctx.numbers
        low, high, axis, factor = ctx.rest
        inside = _inside(gradient, value, (low - 0.5 - zero) * step, (high + 0.5 - zero) * step)
        to_scale = to_zero = None
        scale = step.flatten() if isinstance(step, Tensor) else step
        if ctx.needs_input_grad[1]:
            codes = _codes(_wide(value), step, zero, low, high)
            to_scale = (_dot(gradient, codes, axis) - _dot(inside, value, axis) / scale) * factor
        if ctx.needs_input_grad[2]:
            to_zero = _rows(_wide(inside) - _wide(gradient), axis).sum(1) * scale * factor
        return inside, _narrow(to_scale), _narrow(to_zero), None, None, None, None


def _rounded(value: Tensor, step: _Numbers, zero: _Numbers, low: int, high: int) -> Tensor:
    rounded = _codes(_wide(value.detach()), step, zero, low, high).mul_(step)
    return rounded.add_(0.0).to(value.dtype)  # no negative zeros


def _numbers(
    scale: Tensor, zero_point: Tensor, low: int, high: int, value: Tensor, axis: int | None
) -> tuple[_Numbers, _Numbers]:
    """Scale and zero point: plain numbers, or tensors that broadcast against ``value``."""
    scale, zero_point = scale.detach(), zero_point.detach()
    zero = zero_point.round().clamp(low, high) if zero_point.is_floating_point() else zero_point
    if axis is None:
        return scale.item(), 0.0 if low < 0 else float(zero.item())
    shape = [-1 if dim == axis else 1 for dim in range(value.dim())]
    return scale.view(shape), 0.0 if low < 0 else zero.view(shape)


def _codes(value: Tensor, step: _Numbers, zero: _Numbers, low: int, high: int) -> Tensor:
    """Codes less the zero point."""
    codes = (value * (1.0 / step)).round_()
    if isinstance(zero, Tensor):
        return codes.add_(zero).clamp_(low, high).sub_(zero)
    return codes.clamp_(low - zero, high - zero)


def _inside(gradient: Tensor, value: Tensor, lowest: _Numbers, highest: _Numbers) -> Tensor:
    """The gradient where ``value`` lies between the bounds, else 0."""
    if isinstance(lowest, Tensor) and isinstance(highest, Tensor):
        return torch.where(_wide(value).clamp(lowest, highest) == value, gradient, 0.0)
    return torch.ops.aten.hardtanh_backward(gradient, value, lowest, highest)  # type: ignore[no-any-return]


def _dot(one: Tensor, other: Tensor, axis: int | None) -> Tensor:
    """Sum of products, for each entry of ``axis``: shape (1,) or (entries,)."""
    if axis is None:
        return torch.dot(_wide(one).reshape(-1), _wide(other).reshape(-1)).view(1)
    return cast(Tensor, torch.linalg.vecdot(_rows(_wide(one), axis), _rows(_wide(other), axis)))


def _rows(value: Tensor, axis: int | None) -> Tensor:
    return value.reshape(1, -1) if axis is None else value.movedim(axis, 0).flatten(1)


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in _WIDE else value.float()


def _narrow(gradient: Tensor | None) -> Tensor | None:
    """As scales and zero points are."""
    return None if gradient is None else gradient.float()

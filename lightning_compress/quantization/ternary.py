"""Weights of two bits: minus, zero, plus."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.binary import straight_through

TWN_SHARE, TTQ_SHARE = 0.7, 0.05


def ternarize(weight: Tensor) -> Tensor:
    """-a, 0 or a: zero up to 0.7 of the mean absolute weight, ``a`` the mean of the others; straight-through gradient.

    Li, Zhang and Liu, "Ternary Weight Networks", 2016: nearly the ternary weights of least squared error.

    >>> ternarize(torch.tensor([1.0, -2.0, 0.1, 0.0])).tolist()
    [1.5, -1.5, 0.0, 0.0]
    """
    value = weight.detach()
    large = value.abs() > TWN_SHARE * mean_of(value.abs(), value != 0)
    return straight_through(weight, torch.where(large, value.sign() * mean_of(value.abs(), large), 0.0))


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, 0 where there is none; exact where they are equal."""
    total = torch.where(chosen, values, 0.0).double().sum()
    return (total / chosen.sum().clamp(min=1)).to(values.dtype)


def ternarize_trained(weight: Tensor, positive: Tensor, negative: Tensor, share: float = TTQ_SHARE) -> Tensor:
    """-negative, 0 or positive: zero up to ``share`` of the largest absolute weight, with two values that are trained.

    The gradient of a value is the sum of its weights'; that of a weight is multiplied by its value (by one where it is
    zero). Zhu et al., "Trained Ternary Quantization", ICLR 2017, equations 7 and 8.

    >>> positive, negative = torch.tensor(3.0), torch.tensor(2.0)
    >>> ternarize_trained(torch.tensor([1.0, -0.5, 0.01]), positive, negative).tolist()
    [3.0, -2.0, 0.0]
    """
    found: Tensor = _Trained.apply(weight, positive, negative, share)  # type: ignore[no-untyped-call]
    return found


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, positive: Tensor, negative: Tensor, share: float) -> Tensor:
        edge = share * weight.abs().max()
        plus, minus = weight > edge, weight < -edge
        ctx.save_for_backward(plus, minus, positive, negative)
        zero = weight.new_zeros(())
        return torch.where(plus, positive.to(weight.dtype), torch.where(minus, -negative.to(weight.dtype), zero))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        plus, minus, positive, negative = ctx.saved_tensors
        factor = torch.where(plus, positive.to(gradient.dtype), torch.where(minus, negative.to(gradient.dtype), 1.0))
        wide = gradient.double()
        up = torch.where(plus, wide, 0.0).sum().to(positive.dtype)
        down = -torch.where(minus, wide, 0.0).sum().to(negative.dtype)
        return gradient * factor, up, down, None


class Ternarizer:
    """TWN: a transform for ``TransparentWeights``."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The ternary weights."""
        return ternarize(weight)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Nothing is trained."""
        return {}

    def to_state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def from_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to go on from."""


class TrainedTernarizer:
    """TTQ: a transform with two trained values, which begin as the means of the weights that they stand for.

    Args:
        weight: the parameter as it is at the start.
    """

    def __init__(self, weight: Tensor) -> None:
        value = weight.detach().float()
        edge = TTQ_SHARE * value.abs().max()
        self.positive = nn.Parameter(mean_of(value, value > edge))
        self.negative = nn.Parameter(mean_of(-value, value < -edge))

    def __call__(self, weight: Tensor) -> Tensor:
        """The ternary weights."""
        for value in self.parameters().values():
            if value.device != weight.device:
                value.data = value.data.to(weight.device)
        return ternarize_trained(weight, self.positive, self.negative)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The two values."""
        return {"positive": self.positive, "negative": self.negative}

    def to_state(self) -> dict[str, Tensor]:
        """The two values, for a checkpoint."""
        return {name: value.detach().clone() for name, value in self.parameters().items()}

    @torch.no_grad()
    def from_state(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`to_state`."""
        for name, value in self.parameters().items():
            value.copy_(state[name])

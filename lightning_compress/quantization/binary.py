"""Weights of one bit: signs, and what they are multiplied by."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

SCALES = ("glorot", "bwn")


def glorot_bound(shape: torch.Size) -> float:
    """``sqrt(1.5 / (inputs + outputs))``: the largest weight that Glorot's initialisation draws, over sqrt(2).

    What the authors of BinaryConnect call H: weights lie in [-H, H] and are seen as -H or H.

    >>> glorot_bound(torch.Size([10, 5]))
    0.31622776601683794
    """
    receptive = shape[2:].numel() if len(shape) > 2 else 1
    inputs, outputs = (shape[1] if len(shape) > 1 else 1) * receptive, shape[0] * receptive
    return sqrt(1.5 / (inputs + outputs))


def binarize(weight: Tensor, bound: float = 1.0) -> Tensor:
    """``bound`` times the sign; the gradient passes straight through. Exact zeros, which pruning left, stay zeros.

    Courbariaux, Bengio and David, "BinaryConnect", NIPS 2015, equation 1.

    >>> binarize(torch.tensor([0.3, -0.1, 0.0])).tolist()
    [1.0, -1.0, 0.0]
    """
    return straight_through(weight, weight.detach().sign() * bound)


def binarize_stochastically(weight: Tensor, bound: float = 1.0) -> Tensor:
    """``bound`` with the chance of the hard sigmoid ``clip((w / bound + 1) / 2, 0, 1)``, else ``-bound``.

    Courbariaux, Bengio and David, "BinaryConnect", NIPS 2015, equations 2 and 3. Draws from torch's random state.

    >>> binarize_stochastically(torch.tensor([1.0, -1.0])).tolist()
    [1.0, -1.0]
    """
    value = weight.detach()
    chance = (value / bound + 1) / 2
    signs = torch.where(torch.rand_like(value) < chance, bound, -bound).to(value.dtype)
    return straight_through(weight, signs.masked_fill_(value == 0, 0))


def binarize_scaled(weight: Tensor) -> Tensor:
    """The sign times the mean absolute weight of each output neuron; the gradient passes straight through.

    Rastegari et al., "XNOR-Net" (its Binary-Weight-Network), ECCV 2016: that scale is the one of least squared error.

    >>> binarize_scaled(torch.tensor([[0.5, -1.5], [0.2, 0.0]])).tolist()
    [[1.0, -1.0], [0.20000000298023224, 0.0]]
    """
    value = weight.detach()
    dims = tuple(range(1, value.dim()))
    count = (value != 0).sum(dims, keepdim=True).clamp(min=1)
    scale = value.abs().double().sum(dims, keepdim=True) / count  # exact where all are equal: what is binary stays
    return straight_through(weight, value.sign() * scale.to(value.dtype))


def binarize_activations(inputs: Tensor, *, scaled: bool = False) -> Tensor:
    """The sign of what a layer reads, zero counting as plus; gradients pass where it lies in [-1, 1].

    Args:
        inputs: shape (N, ...).
        scaled: times the mean absolute value of each sample (XNOR-Net's K, one number a sample).

    >>> binarize_activations(torch.tensor([[0.5, -3.0]]), scaled=True).tolist()
    [[1.75, -1.75]]
    """
    signs = torch.where(inputs.detach() >= 0, 1.0, -1.0).to(inputs.dtype)
    if scaled:
        dims = tuple(range(1, inputs.dim()))
        signs = signs * inputs.detach().abs().mean(dims, keepdim=True)
    return straight_through(inputs.clamp(-1, 1), signs)


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """``value``, exactly, with gradients that go to ``source``.

    >>> weight = torch.tensor([0.3], requires_grad=True)
    >>> straight_through(weight, torch.ones(1)).sum().backward()
    >>> weight.grad.item()
    1.0
    """
    found: Tensor = _StraightThrough.apply(source, value)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Binarizer:
    """How one parameter is seen in a forward; a transform for ``TransparentWeights``.

    Args:
        shape: of the parameter.
        scale: "glorot", "bwn" or None for one.
        stochastic: draw the signs, where gradients are recorded.
    """

    def __init__(self, shape: torch.Size, scale: str | None, *, stochastic: bool) -> None:
        self.scale, self.stochastic = scale, stochastic
        self.bound = glorot_bound(shape) if scale == "glorot" else 1.0

    def __call__(self, weight: Tensor) -> Tensor:
        """The binary weights; the deterministic ones outside of training."""
        if self.scale == "bwn":
            return binarize_scaled(weight)
        if self.stochastic and torch.is_grad_enabled() and weight.requires_grad:
            return binarize_stochastically(weight, self.bound)
        return binarize(weight, self.bound)

    def clip_(self, weight: Tensor) -> None:
        """Real-valued weights stay where a gradient can still turn them."""
        weight.clamp_(-self.bound, self.bound)

    def to_state(self) -> dict[str, float]:
        """For a checkpoint: the bound stays that of the layer's first shape."""
        return {"bound": self.bound}

    def from_state(self, state: dict[str, float]) -> None:
        """Go on from :meth:`to_state`."""
        self.bound = state["bound"]


def check_mode(mode: str, scale: str | None) -> None:
    """Refuse a combination that means nothing.

    Raises:
        CompressionError: unknown, or drawn signs with a scale that depends on the weights.
    """
    if mode not in ("deterministic", "stochastic"):
        raise CompressionError(f"mode={mode!r} is unknown: deterministic or stochastic.")
    if scale is not None and scale not in SCALES:
        raise CompressionError(f"scale={scale!r} is unknown: {', '.join(SCALES)}, or None for plus and minus one.")
    if mode == "stochastic" and scale == "bwn":
        raise CompressionError('mode="stochastic" draws signs within fixed bounds; with scale="bwn" there are none.')

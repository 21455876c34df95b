"""Inputs of a layer as the vectors that its weight is multiplied with."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from lightning_compress.errors import CompressionError

CHUNK = 2**22
"""Entries of unfolded patches held at a time."""


def input_rows(layer: nn.Module, value: Tensor) -> Tensor:
    """``value`` with features at dimension 1: (samples, features) of a Linear, else (samples, channels, ...)."""
    if isinstance(layer, nn.Linear):
        return value.reshape(-1, value.shape[-1])
    assert isinstance(layer, _ConvNd)
    return value.unsqueeze(0) if value.dim() == len(layer.kernel_size) + 1 else value


def patch_width(layer: nn.Module) -> int:
    """Length of the vectors: inputs of a Linear, channels times kernel positions of a convolution.

    Raises:
        CompressionError: a grouped or transposed convolution, whose weight multiplies no single kind of vector.

    >>> patch_width(nn.Conv2d(3, 8, (3, 5)))
    45
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features
    assert isinstance(layer, _ConvNd)
    if layer.groups > 1 or layer.transposed:
        kind = "transposed" if layer.transposed else "grouped"
        raise CompressionError(f"second moments of a {kind} convolution are not defined here. Leave it out.")
    return layer.in_channels * prod(layer.kernel_size)


def patches(layer: nn.Module, rows: Tensor) -> Tensor:
    """The vectors, shape (number, :func:`patch_width`), of inputs as :func:`input_rows` gives them.

    >>> layer = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
    >>> value = torch.randn(5, 2, 6, 6)
    >>> product = patches(layer, value) @ layer.weight.flatten(1).T
    >>> torch.allclose(product.view(5, 3, 3, 4).permute(0, 3, 1, 2), layer(value), atol=1e-5)
    True
    """
    if isinstance(layer, nn.Linear):
        return rows
    assert isinstance(layer, _ConvNd)
    spatial = len(layer.kernel_size)
    value = _pad(layer, rows)
    for dim, (kernel, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        value = value.unfold(dim + 2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    places, kernels = range(2, 2 + spatial), range(2 + spatial, 2 + 2 * spatial)
    return value.permute(0, *places, 1, *kernels).reshape(-1, layer.in_channels * prod(layer.kernel_size))


def second_moments_of(layer: nn.Module, rows: Tensor, *, into: Tensor) -> int:
    """Add the sum of x xT over the vectors to ``into``, in float64, a few samples at a time; returns their number."""
    expansion = 1 if isinstance(layer, nn.Linear) else into.shape[0] // rows.shape[1]
    samples = max(1, CHUNK // max(1, rows[:1].numel() * expansion))
    number = 0
    with torch.autocast(rows.device.type, enabled=False):
        for part in torch.split(rows, samples):
            vectors = patches(layer, part).double()
            into.addmm_(vectors.T, vectors)
            number += vectors.shape[0]
    return number


def _pad(layer: _ConvNd, rows: Tensor) -> Tensor:
    sides: list[int] = []
    for dim in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            whole = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
            sides += [whole // 2, whole - whole // 2]
        elif layer.padding == "valid":
            sides += [0, 0]
        else:
            sides += [int(layer.padding[dim])] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(rows, sides, mode=mode) if any(sides) else rows

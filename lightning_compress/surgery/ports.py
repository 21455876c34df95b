"""Kinds of layers, and where their weights count what they read."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel that comes in is convolved by itself.

    >>> is_depthwise(nn.Conv2d(4, 8, 3, groups=4)), is_depthwise(nn.Conv2d(4, 8, 3, groups=2))
    (True, False)
    """
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def is_layer(module: nn.Module) -> bool:
    """Whether ``module`` mixes its inputs into units of its own: Linear, recurrent layers, attention and
    convolutions, except depthwise ones.
    """
    kinds = (nn.Linear, nn.RNNBase, nn.MultiheadAttention, *CONVOLUTIONS)
    return isinstance(module, kinds) and not is_depthwise(module)


def input_dim(module: nn.Module) -> int:
    """The dimension of the layer's weight that counts its inputs: 1, or 0 of a transposed convolution."""
    return 0 if getattr(module, "transposed", False) else 1

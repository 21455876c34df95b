"""Layers side by side: the one module in specs that torch.nn does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concatenation(nn.Module):
    """Convolutions that read the same input; their outputs, one behind the other along the channels.

    A depthwise convolution with several filters a channel is much slower on a CPU than as many with one each, side by
    side, which compute the same.

    >>> layer = Concatenation()
    >>> layer.add_module("0", nn.Conv2d(3, 3, 3, groups=3))
    >>> layer.add_module("1", nn.Conv2d(3, 3, 3, groups=3))
    >>> layer(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 6, 6, 6])
    """

    def forward(self, value: Tensor) -> Tensor:
        """What the children make of ``value``, (N, channels, ...) or (channels, ...)."""
        children = list(self.children())
        spatial = len(children[0].kernel_size) if isinstance(children[0], nn.modules.conv._ConvNd) else 0
        return torch.cat([child(value) for child in children], dim=-1 - spatial)

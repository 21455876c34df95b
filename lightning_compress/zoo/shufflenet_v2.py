"""ShuffleNetV2 of any width."""

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.zoo.blocks import channel_shuffle, conv_norm, initialise_, max_pool, strides_for

WIDTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
CHANNELS = (0, 48, 116, 176, 244)
"""Channels of the first stage at those widths, as the paper has them; each further stage has twice as many."""
REPEATS = (4, 8, 4)


def _depthwise(channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)


class SplitShuffleUnit(nn.Module):
    """Half of the channels pass untouched, the other half goes through three convolutions.

    What counts is time, not multiplications: equally wide layers move the least memory, and a split with a
    concatenation is cheaper than groups and sums of channels. The shuffle at the end deals both halves to the next
    unit. Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018.

    Args:
        channels: of the input and the output; even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(*conv_norm(half, half, 1), *_depthwise(half, 1), *conv_norm(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape (N, channels, H, W)."""
        kept, changed = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((kept, self.branch2(changed)), dim=1), 2)


class WideningShuffleUnit(nn.Module):
    """The first unit of a stage: both branches see all channels, so that there are twice as many behind them.

    Nothing passes untouched here, since the picture is halved: each branch has a depthwise convolution with a stride,
    and half of the output comes from each. No sum is needed. Ma et al., "ShuffleNet V2: Practical Guidelines for
    Efficient CNN Architecture Design", ECCV 2018.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; even.
        stride: of the depthwise convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch1 = nn.Sequential(*_depthwise(in_channels, stride), *conv_norm(in_channels, half, 1))
        self.branch2 = nn.Sequential(
            *conv_norm(in_channels, half, 1), *_depthwise(half, stride), *conv_norm(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """Sixteen units in three stages between two convolutions. Keys and shapes are torchvision's.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: the paper has 0.5, 1, 1.5 and 2; between them the channels are interpolated, beyond they are extended in
            proportion.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        first, pool, *halvings = strides_for(image_size)
        wide, channels = _first_stage(width), 24
        self.conv1 = conv_norm(in_channels, channels, 3, first)
        self.maxpool = max_pool(pool, padding=1)
        stages = []
        for repeats, stride in zip(REPEATS, halvings, strict=True):
            units = (SplitShuffleUnit(wide) for _ in range(repeats - 1))
            stages.append(nn.Sequential(WideningShuffleUnit(channels, wide, stride), *units))
            channels, wide = wide, 2 * wide
        self.stage2, self.stage3, self.stage4 = stages
        last = 1024 if width < 2 else round(1024 * width)
        self.conv5 = conv_norm(channels, last, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, num_classes)
        initialise_(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        scores: Tensor = self.fc(self.avgpool(self.conv5(x)).flatten(1))
        return scores


def _first_stage(width: float) -> int:
    """Channels of the first stage: an even number, so that they can be split."""
    if not width > 0:
        raise CompressionError(f"width={width} leaves no channels; use a positive multiplier, such as 0.5.")
    exact = float(np.interp(width, WIDTHS, CHANNELS)) if width <= 2 else width * CHANNELS[-1] / WIDTHS[-1]
    return max(2, 2 * round(exact / 2))


def shufflenet_v2(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> ShuffleNetV2:
    """ShuffleNetV2: at width 1, 2.3 million parameters and 145 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> shufflenet_v2(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return ShuffleNetV2(num_classes, in_channels, width, image_size)

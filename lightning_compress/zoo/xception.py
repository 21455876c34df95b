"""Xception as its author drew it."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_compress.zoo.blocks import initialise_, scaled, strides_for

BLOCKS = (
    ((64, 128, 128), True),
    ((128, 256, 256), True),
    ((256, 728, 728), True),
    *(((728, 728, 728, 728), False) for _ in range(8)),
    ((728, 728, 1024), True),
)
"""Channels before, between and after the separable convolutions of each block; whether it halves the picture."""


class SeparableConvolution(nn.Module):
    """A 3x3 convolution of single channels and a 1x1 convolution of all, with nothing between them.

    An Inception module with as many towers as channels is just this: space and channels fully decoupled. Without an
    activation in the middle it learns faster. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions",
    CVPR 2017.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H, W) of features (N, in_channels, H, W)."""
        features: Tensor = self.pointwise(self.conv1(x))
        return features


class XceptionBlock(nn.Module):
    """Two or three separable convolutions with a shortcut around them.

    The activation stands before each convolution, and the shortcut is linear, so the gradient has a straight way
    through all blocks. Where the picture is halved, by max-pooling, the shortcut is a 1x1 convolution. Chollet,
    "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.

    Args:
        channels: of the input and after each of the separable convolutions.
        stride: of the pool at the end; None for a block that only adds its input.
        begins_with_relu: False in the first block, whose input has just passed one.
    """

    def __init__(self, channels: Sequence[int], stride: int | None, begins_with_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(channels):
            layers += [nn.ReLU(), SeparableConvolution(in_channels, out_channels), nn.BatchNorm2d(out_channels)]
        if not begins_with_relu:
            del layers[0]
        if stride is not None:
            layers.append(nn.MaxPool2d(3, stride, 1))
            self.skip: nn.Module = nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False)
            self.skipbn: nn.Module = nn.BatchNorm2d(channels[-1])
        else:
            self.skip, self.skipbn = nn.Identity(), nn.Identity()
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels[-1], H / stride, W / stride) of features (N, channels[0], H, W)."""
        features: Tensor = self.rep(x) + self.skipbn(self.skip(x))
        return features


class Xception(nn.Module):
    """Twelve blocks between two plain and two separable convolutions. Keys and shapes are timm's legacy_xception.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        stem, *halvings = strides_for(image_size)
        narrow, wide = scaled(32, width), scaled(64, width)
        padding = stem % 2  # small pictures have no edge to lose
        self.conv1 = nn.Conv2d(in_channels, narrow, 3, stem, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, wide, 3, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        for index, (planned, halves) in enumerate(BLOCKS):
            stride = halvings.pop(0) if halves else None
            block = XceptionBlock([scaled(channels, width) for channels in planned], stride, index > 0)
            self.add_module(f"block{index + 1}", block)
        before, middle, last = (scaled(channels, width) for channels in (1024, 1536, 2048))
        self.conv3 = SeparableConvolution(before, middle)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv4 = SeparableConvolution(middle, last)
        self.bn4 = nn.BatchNorm2d(last)
        self.relu = nn.ReLU()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, num_classes)
        initialise_(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        for number in range(1, len(BLOCKS) + 1):
            x = self.get_submodule(f"block{number}")(x)
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.conv4(x)))
        scores: Tensor = self.fc(self.global_pool(x).flatten(1))
        return scores


def xception(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 299) -> Xception:
    """Xception: at width 1, 22.9 million parameters and 8.4 billion multiply-accumulates at 299 pixels.

    >>> import torch
    >>> xception(10, width=0.05, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return Xception(num_classes, in_channels, width, image_size)

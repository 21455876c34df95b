"""ShuffleNetV1 of any width and number of groups."""

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.zoo.blocks import channel_shuffle, initialise_, max_pool, strides_for

CHANNELS = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
"""Channels of the three stages for each number of groups, such that all cost about the same."""
REPEATS = (4, 8, 4)


class GroupedShuffleUnit(nn.Module):
    """A residual bottleneck whose 1x1 convolutions are grouped too.

    Once 3x3 convolutions are depthwise, the 1x1 ones cost most, so they are divided into groups, and a channel shuffle
    between them lets information pass from group to group. A unit that halves the picture puts the pooled input beside
    its output instead of adding it, which widens the features for nothing. Zhang et al., "ShuffleNet: An Extremely
    Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        groups: of the 1x1 convolutions.
        first_groups: of the first of them; the paper leaves it whole where the input is narrow.
        stride: of a unit that widens; None for one that adds its input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, first_groups: int, stride: int | None = None
    ) -> None:
        super().__init__()
        middle = out_channels // 4
        new = out_channels if stride is None else out_channels - in_channels
        self.groups = groups
        self.compress = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.compress_norm = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride or 1, 1, groups=middle, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, new, 1, groups=groups, bias=False)
        self.expand_norm = nn.BatchNorm2d(new)
        self.pool = None if stride is None else nn.AvgPool2d(3, stride, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        out = self.relu(self.compress_norm(self.compress(x)))
        out = self.depthwise_norm(self.depthwise(channel_shuffle(out, self.groups)))
        out = self.expand_norm(self.expand(out))
        out = out + x if self.pool is None else torch.cat((out, self.pool(x)), dim=1)
        features: Tensor = self.relu(out)
        return features


class ShuffleNetV1(nn.Module):
    """Sixteen units in three stages after a convolution and a pool. No library that we know of carries it.

    Args:
        groups: of the 1x1 convolutions: 1, 2, 3, 4 or 8; more groups pay for more channels.
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels; the paper has 1, 0.5 and 0.25.
        image_size: height and width of the pictures, at least 8.

    Raises:
        CompressionError: another number of groups.
    """

    def __init__(self, groups: int, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        if groups not in CHANNELS:
            raise CompressionError(f"groups={groups}: ShuffleNetV1 is defined for groups of {list(CHANNELS)}.")
        first, pool, *halvings = strides_for(image_size)
        channels = _in_groups(24, width, groups)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, first, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = max_pool(pool, padding=1)
        stages: list[nn.Module] = []
        for planned, repeats, stride in zip(CHANNELS[groups], REPEATS, halvings, strict=True):
            wide = _in_groups(planned, width, 4 * groups)
            units = [GroupedShuffleUnit(channels, wide, groups, groups if stages else 1, stride)]
            units += [GroupedShuffleUnit(wide, wide, groups, groups) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*units))
            channels = wide
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(self.avgpool(self.stages(x)).flatten(1))
        return scores


def _in_groups(channels: int, width: float, divisor: int) -> int:
    """The nearest width that can be divided; at least once."""
    if not width > 0:
        raise CompressionError(f"width={width} leaves no channels; use a positive multiplier, such as 0.5.")
    return max(divisor, int(channels * width / divisor + 0.5) * divisor)


def shufflenet_v1(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224, groups: int = 3
) -> ShuffleNetV1:
    """ShuffleNetV1: at width 1 with 3 groups, 1.9 million parameters, 137 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> shufflenet_v1(10, width=0.25, image_size=32, groups=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return ShuffleNetV1(groups, num_classes, in_channels, width, image_size)

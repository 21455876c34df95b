"""Residual networks: one for a laptop, rich enough to break careless surgery, and those of the paper."""

from itertools import pairwise

from torch import Tensor, nn

from lightning_compress.zoo.blocks import initialise_, max_pool, scaled, strides_for

CHANNELS = (64, 128, 256, 512)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut; a projected one (option B) where the shape changes.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution and of the shortcut.

    >>> import torch
    >>> ResidualBlock(4, 8, stride=2)(torch.zeros(1, 4, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        features: Tensor = self.relu(out + self.shortcut(x))
        return features


class SmallResNet(nn.Module):
    """A ResNet-8: a stem, one residual block for each width, global average pooling and a linear layer.

    With the default widths it has 77,754 parameters for grey pictures and ten classes. The first block keeps the
    resolution, each of the others halves it; any picture of at least 4x4 pixels is accepted.

    Args:
        channels: width of the stem and of each block.
        in_channels: channels of the pictures.
        num_classes: number of outputs.

    >>> import torch
    >>> SmallResNet()(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64), in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU()
        blocks = [ResidualBlock(channels[0], channels[0])]
        blocks += [ResidualBlock(narrow, wide, stride=2) for narrow, wide in pairwise(channels)]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        scores: Tensor = self.fc(self.flatten(self.pool(x)))
        return scores


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    A block has to learn only what it adds to its input, so a hundred of them can be stacked and still be trained. The
    shortcut is the identity, or a 1x1 convolution where the shape changes. He et al., "Deep Residual Learning for Image
    Recognition", CVPR 2016.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        features: Tensor = self.relu(out + self.downsample(x))
        return features


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, which make its channels four times fewer and restore them.

    Deep networks afford wide features that way, since only the 1x1 convolutions meet them. The stride lies in the 3x3
    convolution, which every reimplementation found better than the paper's place for it. He et al., "Deep Residual
    Learning for Image Recognition", CVPR 2016.

    Args:
        in_channels: channels of the input.
        channels: of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 4 * channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        features: Tensor = self.relu(out + self.downsample(x))
        return features


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Four stages of residual blocks after a 7x7 convolution and a pool. Keys and shapes are torchvision's.

    Args:
        block: kind of the blocks.
        repeats: blocks of each stage.
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        repeats: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
        width: float,
        image_size: int,
    ) -> None:
        super().__init__()
        first, pool, *halvings = strides_for(image_size)
        features = scaled(64, width)
        self.conv1 = nn.Conv2d(in_channels, features, 7, first, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.relu = nn.ReLU()
        self.maxpool = max_pool(pool, padding=1)
        stages = []
        for planned, count, stride in zip(CHANNELS, repeats, (1, *halvings), strict=True):
            channels = scaled(planned, width)
            wide = channels * block.expansion
            rest = (block(wide, channels) for _ in range(count - 1))
            stages.append(nn.Sequential(block(features, channels, stride), *rest))
            features = wide
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)
        initialise_(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores


def resnet18(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> ResNet:
    """ResNet-18: at width 1, 11.7 million parameters and 1.8 billion multiply-accumulates at 224 pixels.

    >>> import torch
    >>> resnet18(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width, image_size)


def resnet34(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> ResNet:
    """ResNet-34: at width 1, 21.8 million parameters and 3.7 billion multiply-accumulates at 224 pixels."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, width, image_size)


def resnet50(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> ResNet:
    """ResNet-50: at width 1, 25.6 million parameters and 4.1 billion multiply-accumulates at 224 pixels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width, image_size)


def resnet101(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> ResNet:
    """ResNet-101: at width 1, 44.5 million parameters and 7.8 billion multiply-accumulates at 224 pixels."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, width, image_size)


def resnet152(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> ResNet:
    """ResNet-152: at width 1, 60.2 million parameters and 11.5 billion multiply-accumulates at 224 pixels."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_channels, width, image_size)

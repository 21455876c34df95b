"""A residual network small enough for a laptop and rich enough to break careless surgery."""

from itertools import pairwise

from torch import Tensor, nn


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

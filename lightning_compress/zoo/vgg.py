"""VGG with 11 to 19 layers, with and without BatchNorm."""

from torch import Tensor, nn

from lightning_compress.zoo.blocks import initialise_, scaled, strides_for

CHANNELS = (64, 128, 256, 512, 512)
REPEATS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions before each pool, by the number of layers with weights."""
LARGEST_SIDE = 7


class VGG(nn.Module):
    """Stacks of 3x3 convolutions with pools between them, and three linear layers. Keys and shapes are torchvision's.

    Two 3x3 convolutions see as far as one of 5x5, with fewer weights and one more activation: depth for free. Most
    weights lie in the first linear layer, most time in the convolutions. Simonyan and Zisserman, "Very Deep
    Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.

    The first linear layer looks at 7x7 positions, or at the fewer that smaller pictures leave: its shape is the only
    one in the zoo that depends on ``image_size``.

    Args:
        layers: with weights: 11, 13, 16 or 19.
        batch_norm: whether a BatchNorm follows each convolution.
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels and hidden neurons.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(
        self, layers: int, batch_norm: bool, num_classes: int, in_channels: int, width: float, image_size: int
    ) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels, side = in_channels, image_size
        for planned, repeats, stride in zip(CHANNELS, REPEATS[layers], strides_for(image_size), strict=True):
            for _ in range(repeats):
                features.append(nn.Conv2d(channels, channels := scaled(planned, width), 3, padding=1))
                features += [nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
            features.append(nn.MaxPool2d(2) if stride == 2 else nn.Identity())
            side //= stride
        side = min(side, LARGEST_SIDE)
        hidden = scaled(4096, width)
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        )
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


def vgg11(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-11, without BatchNorm: 132.9 million parameters at width 1 and 224 pixels."""
    return VGG(11, False, num_classes, in_channels, width, image_size)


def vgg13(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-13, without BatchNorm: 133.0 million parameters at width 1 and 224 pixels."""
    return VGG(13, False, num_classes, in_channels, width, image_size)


def vgg16(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-16, without BatchNorm: 138.4 million parameters at width 1 and 224 pixels."""
    return VGG(16, False, num_classes, in_channels, width, image_size)


def vgg19(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-19, without BatchNorm: 143.7 million parameters at width 1 and 224 pixels."""
    return VGG(19, False, num_classes, in_channels, width, image_size)


def vgg11_bn(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-11 with BatchNorm.

    >>> import torch
    >>> vgg11_bn(10, width=0.125, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return VGG(11, True, num_classes, in_channels, width, image_size)


def vgg13_bn(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-13 with BatchNorm."""
    return VGG(13, True, num_classes, in_channels, width, image_size)


def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-16 with BatchNorm."""
    return VGG(16, True, num_classes, in_channels, width, image_size)


def vgg19_bn(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224) -> VGG:
    """VGG-19 with BatchNorm."""
    return VGG(19, True, num_classes, in_channels, width, image_size)

"""MobileNetV2 of any width."""

from torch import Tensor, nn

from lightning_compress.zoo.blocks import conv_norm, initialise_, scaled, strides_for

STAGES = (
    (1, 16, 1, False),
    (6, 24, 2, True),
    (6, 32, 3, True),
    (6, 64, 4, True),
    (6, 96, 3, False),
    (6, 160, 3, True),
    (6, 320, 1, False),
)
"""Expansion, output channels, blocks, and whether the first block halves the picture."""


class InvertedResidual(nn.Module):
    """A residual block that is wide inside and narrow between blocks.

    A 1x1 convolution expands, a 3x3 convolution of single channels filters, and a 1x1 convolution projects back. No
    activation follows the projection, since a ReLU would destroy what few channels carry; the shortcut joins the narrow
    ends. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the 3x3 convolution.
        expansion: how many times wider it is inside; 1 leaves the expanding convolution out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        inside = in_channels * expansion
        layers = [conv_norm(in_channels, inside, 1, activation=nn.ReLU6)] if expansion != 1 else []
        layers.append(conv_norm(inside, inside, 3, stride, groups=inside, activation=nn.ReLU6))
        project = nn.Conv2d(inside, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        self.conv = nn.Sequential(*layers, *project)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        features: Tensor = self.conv(x)
        return x + features if self.use_res_connect else features


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks between two convolutions. Keys and shapes are torchvision's.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels, except that the last convolution keeps its 1280 below 1.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        halvings = list(strides_for(image_size))
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, halvings.pop(0), activation=nn.ReLU6)]
        for expansion, planned, blocks, halves in STAGES:
            stride, out_channels = halvings.pop(0) if halves else 1, scaled(planned, width)
            for index in range(blocks):
                layers.append(InvertedResidual(channels, out_channels, stride if index == 0 else 1, expansion))
                channels = out_channels
        last = scaled(1280, max(1.0, width))
        layers.append(conv_norm(channels, last, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


def mobilenet_v2(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> MobileNetV2:
    """MobileNetV2: at width 1, 3.5 million parameters and 301 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> mobilenet_v2(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return MobileNetV2(num_classes, in_channels, width, image_size)

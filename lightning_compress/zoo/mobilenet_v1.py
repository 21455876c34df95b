"""MobileNetV1 of any width."""

from torch import Tensor, nn

from lightning_compress.zoo.blocks import initialise_, scaled, strides_for

STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
"""Output channels of the blocks; the first of a stage, but not of the first stage, halves the picture."""


class DepthwiseSeparableBlock(nn.Module):
    """A convolution taken apart: one 3x3 kernel for each channel, then a 1x1 convolution that mixes channels.

    Space and channels are treated one after the other, which costs 1/out_channels + 1/9 of a full 3x3 convolution. A
    norm and a ReLU follow each half. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile
    Vision Applications", 2017.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the 3x3 kernels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        x = self.act1(self.bn1(self.conv_dw(x)))
        features: Tensor = self.act2(self.bn2(self.conv_pw(x)))
        return features


class MobileNetV1(nn.Module):
    """Thirteen depthwise separable blocks after a 3x3 convolution. Keys and shapes are those of timm's mobilenetv1_100.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels; the paper has 1, 0.75, 0.5 and 0.25.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        first, *halvings = strides_for(image_size)
        channels = scaled(32, width)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, first, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        stages = []
        for stage, stride in zip(STAGES, (1, *halvings), strict=True):
            blocks = []
            for index, planned in enumerate(stage):
                out_channels = scaled(planned, width)
                blocks.append(DepthwiseSeparableBlock(channels, out_channels, stride if index == 0 else 1))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        scores: Tensor = self.classifier(self.global_pool(x).flatten(1))
        return scores


def mobilenet_v1(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> MobileNetV1:
    """MobileNetV1: at width 1, 4.2 million parameters and 569 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> mobilenet_v1(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return MobileNetV1(num_classes, in_channels, width, image_size)

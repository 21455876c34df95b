"""MobileNetV3, large and small, of any width."""

from functools import partial

from torch import Tensor, nn

from lightning_compress.zoo.blocks import Layer, SqueezeExcitation, conv_norm, initialise_, scaled, strides_for

NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
LARGE = (
    "3 16 16 relu",
    "3 64 24 relu halve",
    "3 72 24 relu",
    "5 72 40 relu excite halve",
    "5 120 40 relu excite",
    "5 120 40 relu excite",
    "3 240 80 hardswish halve",
    "3 200 80 hardswish",
    "3 184 80 hardswish",
    "3 184 80 hardswish",
    "3 480 112 hardswish excite",
    "3 672 112 hardswish excite",
    "5 672 160 hardswish excite halve",
    "5 960 160 hardswish excite",
    "5 960 160 hardswish excite",
)
SMALL = (
    "3 16 16 relu excite halve",
    "3 72 24 relu halve",
    "3 88 24 relu",
    "5 96 40 hardswish excite halve",
    "5 240 40 hardswish excite",
    "5 240 40 hardswish excite",
    "5 120 48 hardswish excite",
    "5 144 48 hardswish excite",
    "5 288 96 hardswish excite halve",
    "5 576 96 hardswish excite",
    "5 576 96 hardswish excite",
)
"""Of each block: kernel, channels inside, output channels, activation, squeeze and excitation, halving."""


class ExcitedInvertedResidual(nn.Module):
    """The inverted residual block of MobileNetV2 with an architecture search's choices.

    Kernel, width, activation and squeeze-and-excitation are chosen block by block by a search for speed on a telephone.
    Hard-swish, x * relu6(x + 3) / 6, stands for swish without an exponential. Howard et al., "Searching for
    MobileNetV3", ICCV 2019.

    Args:
        in_channels: channels of the input.
        inside: channels of the convolution of single channels.
        out_channels: channels of the output.
        kernel_size: of that convolution.
        stride: of that convolution.
        activation: builds the activation.
        excite: whether squeeze-and-excitation follows it.
    """

    def __init__(
        self,
        in_channels: int,
        inside: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        activation: Layer,
        excite: bool,
    ) -> None:
        super().__init__()
        build = partial(conv_norm, norm=NORM, activation=activation)
        layers: list[nn.Module] = [build(in_channels, inside, 1)] if inside != in_channels else []
        layers.append(build(inside, inside, kernel_size, stride, groups=inside))
        if excite:
            layers.append(SqueezeExcitation(inside, scaled(inside // 4, 1.0)))
        layers.append(conv_norm(inside, out_channels, 1, norm=NORM, activation=None))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, out_channels, H / stride, W / stride) of features (N, in_channels, H, W)."""
        features: Tensor = self.block(x)
        return x + features if self.use_res_connect else features


class MobileNetV3(nn.Module):
    """The blocks of ``layout`` between two convolutions, and two linear layers. Keys and shapes are torchvision's.

    As in the paper, its norms forget slowly (momentum 0.01): after a fit of a few hundred steps, take their statistics
    anew with :func:`lightning_compress.surgery.recalibrate_batchnorm_`.

    Args:
        layout: a line for each block, as in ``LARGE`` and ``SMALL``.
        hidden: neurons before the last layer, at width 1.
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(
        self, layout: tuple[str, ...], hidden: int, num_classes: int, in_channels: int, width: float, image_size: int
    ) -> None:
        super().__init__()
        halvings = list(strides_for(image_size))
        channels = scaled(16, width)
        outside = partial(conv_norm, norm=NORM, activation=nn.Hardswish)
        layers: list[nn.Module] = [outside(in_channels, channels, 3, halvings.pop(0))]
        for line in layout:
            kernel_size, inside, out_channels = map(int, line.split()[:3])
            layers.append(
                ExcitedInvertedResidual(
                    channels,
                    scaled(inside, width),
                    scaled(out_channels, width),
                    kernel_size,
                    halvings.pop(0) if "halve" in line else 1,
                    nn.Hardswish if "hardswish" in line else nn.ReLU,
                    "excite" in line,
                )
            )
            channels = scaled(out_channels, width)
        layers.append(outside(channels, 6 * channels, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        first, last = nn.Linear(6 * channels, scaled(hidden, width)), nn.Linear(scaled(hidden, width), num_classes)
        self.classifier = nn.Sequential(first, nn.Hardswish(), nn.Dropout(0.2), last)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


def mobilenet_v3_large(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> MobileNetV3:
    """MobileNetV3-Large: at width 1, 5.5 million parameters and 217 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> mobilenet_v3_large(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return MobileNetV3(LARGE, 1280, num_classes, in_channels, width, image_size)


def mobilenet_v3_small(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> MobileNetV3:
    """MobileNetV3-Small: at width 1, 2.5 million parameters and 57 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> mobilenet_v3_small(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return MobileNetV3(SMALL, 1024, num_classes, in_channels, width, image_size)

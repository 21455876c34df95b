"""What the networks of the zoo share: channels that divide well, strides that small pictures bear, common layers."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_compress.errors import CompressionError

SMALLEST_PICTURE = 8
LAST_SIDE = 4

Layer = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """``channels`` times ``width``, to the nearest multiple of ``divisor`` that keeps at least nine tenths of it.

    The rule of the MobileNets' authors; never less than one ``divisor``.

    Args:
        channels: at width 1.
        width: multiplier, above 0.
        divisor: of the result.

    Raises:
        CompressionError: a width that is not positive.

    >>> scaled(24, 1.0), scaled(24, 0.75), scaled(24, 0.5), scaled(24, 0.1)
    (24, 24, 16, 8)
    """
    if not width > 0:
        raise CompressionError(f"width={width} leaves no channels; use a positive multiplier, such as 0.5.")
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def strides_for(image_size: int, count: int = 5) -> tuple[int, ...]:
    """The strides of a network's ``count`` halvings, the first of them 1 where pictures are small.

    So many are left out that about four by four positions reach the end: 32 pixels are halved three times, 64 four
    times, 8 once. It is the early ones that go, since there small pictures have details and no pixels to spare. The
    shapes of weights stay: those that were trained on large pictures fit.

    Args:
        image_size: height and width of the pictures, at least 8.
        count: halvings at full size.

    Raises:
        CompressionError: pictures too small for any of these networks.

    >>> strides_for(224), strides_for(64), strides_for(32), strides_for(8)
    ((2, 2, 2, 2, 2), (1, 2, 2, 2, 2), (1, 1, 2, 2, 2), (1, 1, 1, 1, 2))
    """
    if image_size < SMALLEST_PICTURE:
        raise CompressionError(
            f"image_size={image_size} is too small for this network; pad the pictures to {SMALLEST_PICTURE} pixels, or "
            "take a LeNet."
        )
    kept = min(count, (image_size // LAST_SIDE).bit_length() - 1)
    return (1,) * (count - kept) + (2,) * kept


def max_pool(stride: int, *, padding: int = 0, ceil_mode: bool = False) -> nn.Module:
    """Max-pooling over 3x3 that halves the picture, or nothing at all where ``stride`` is 1."""
    return nn.MaxPool2d(3, 2, padding, ceil_mode=ceil_mode) if stride == 2 else nn.Identity()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    norm: Norm = nn.BatchNorm2d,
    activation: Layer | None = nn.ReLU,
) -> nn.Sequential:
    """A convolution without bias that keeps the size (up to its stride), a norm, and an activation unless None.

    >>> [type(layer).__name__ for layer in conv_norm(3, 8)]
    ['Conv2d', 'BatchNorm2d', 'ReLU']
    """
    padding = kernel_size // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    layers = nn.Sequential(convolution, norm(out_channels))
    if activation is not None:
        layers.append(activation())
    return layers


class SqueezeExcitation(nn.Module):
    """Channels weighed by what the whole picture shows.

    The mean of each channel passes a narrow layer and comes back as a factor between 0 and 1 for that channel. So a
    network attends to channels at next to no cost. Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; with the
    piecewise linear gate of MobileNetV3.

    Args:
        channels: of the input and the output.
        squeezed: channels of the narrow layer.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape (N, channels, H, W)."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        weighed: Tensor = x * self.scale_activation(scale)
        return weighed


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels dealt out like cards: the first of every group, then the second of every group, and so on.

    Grouped convolutions in a row never mix their groups; the shuffle between them does, without any arithmetic. Zhang
    et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018.

    >>> import torch
    >>> channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1), groups=2).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    count, channels, height, width = x.shape
    grouped = x.view(count, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(count, channels, height, width)


def initialise_(network: nn.Module, *, linear_std: float | None = 0.01) -> None:
    """First weights as most of these papers have them, in place.

    Convolutions: normal with the variance that keeps that of the gradients (He et al., ICCV 2015). Linear layers:
    normal with ``linear_std``, or PyTorch's own with None. Biases: zero.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear) and linear_std is not None:
            nn.init.normal_(layer.weight, 0, linear_std)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

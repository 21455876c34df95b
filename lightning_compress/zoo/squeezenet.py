"""SqueezeNet 1.0 and 1.1."""

import torch
from torch import Tensor, nn

from lightning_compress.zoo.blocks import max_pool, scaled, strides_for

POOL = 0
LAYOUTS = {
    "1.0": (96, 7, (POOL, 16, 16, 32, POOL, 32, 48, 48, 64, POOL, 64)),
    "1.1": (64, 3, (POOL, 16, 16, POOL, 32, 32, POOL, 48, 48, 64, 64)),
}
"""Channels and kernel of the first convolution; then pools, and Fire modules by their squeezed channels."""


class Fire(nn.Module):
    """A narrow 1x1 convolution that feeds 1x1 and 3x3 convolutions side by side.

    The expensive 3x3 kernels see few channels, since the squeeze in front is an eighth as wide as the output, and half
    of the output needs no 3x3 kernel at all. That gave AlexNet's accuracy with a fiftieth of its parameters. Iandola
    et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", 2016.

    Args:
        in_channels: channels of the input.
        squeezed: channels between.
        expanded: channels of each half of the output.
    """

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 2 * expanded, H, W) of features (N, in_channels, H, W)."""
        x = self.squeeze_activation(self.squeeze(x))
        halves = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat(halves, dim=1)


class SqueezeNet(nn.Module):
    """Fire modules between pools, and a 1x1 convolution for a classifier. Keys and shapes are torchvision's.

    Args:
        version: "1.0", or "1.1": the same accuracy with 2.3 times fewer multiplications.
        num_classes: number of outputs.
        in_channels: channels of the pictures.
        width: multiplier of all channels.
        image_size: height and width of the pictures, at least 8.
    """

    def __init__(self, version: str, num_classes: int, in_channels: int, width: float, image_size: int) -> None:
        super().__init__()
        channels, kernel_size, layout = LAYOUTS[version]
        channels = scaled(channels, width)
        stride, *pools = strides_for(image_size, 4)
        padding = 0 if stride == 2 else kernel_size // 2
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, kernel_size, stride, padding), nn.ReLU()]
        for squeezed in layout:
            if squeezed == POOL:
                layers.append(max_pool(pools.pop(0), ceil_mode=True))
                continue
            expanded = scaled(4 * squeezed, width)
            layers.append(Fire(channels, scaled(squeezed, width), expanded))
            channels = 2 * expanded
        self.features = nn.Sequential(*layers)
        last = nn.Conv2d(channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight)
                _zero_bias_(layer)
        nn.init.normal_(last.weight, 0, 0.01)
        _zero_bias_(last)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, in_channels, height, width)."""
        scores: Tensor = self.classifier(self.features(x))
        return scores.flatten(1)


def _zero_bias_(layer: nn.Conv2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def squeezenet1_0(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> SqueezeNet:
    """SqueezeNet as in the paper: 1.25 million parameters, 819 million multiply-accumulates at 224 pixels.

    >>> import torch
    >>> squeezenet1_0(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return SqueezeNet("1.0", num_classes, in_channels, width, image_size)


def squeezenet1_1(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, image_size: int = 224
) -> SqueezeNet:
    """SqueezeNet as its authors improved it: 1.24 million parameters, 349 million multiply-accumulates.

    >>> import torch
    >>> squeezenet1_1(10, width=0.25, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return SqueezeNet("1.1", num_classes, in_channels, width, image_size)

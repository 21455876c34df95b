"""All networks of the zoo by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.values import is_whole
from lightning_compress.zoo.lenet import LeNet5, LeNet300
from lightning_compress.zoo.mobilenet_v1 import mobilenet_v1
from lightning_compress.zoo.mobilenet_v2 import mobilenet_v2
from lightning_compress.zoo.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from lightning_compress.zoo.resnet import SmallResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from lightning_compress.zoo.shufflenet_v1 import shufflenet_v1
from lightning_compress.zoo.shufflenet_v2 import shufflenet_v2
from lightning_compress.zoo.squeezenet import squeezenet1_0, squeezenet1_1
from lightning_compress.zoo.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from lightning_compress.zoo.xception import xception

Builder = Callable[..., nn.Module]

LENETS: dict[str, Builder] = {"lenet_300_100": LeNet300, "lenet_5": LeNet5, "small_resnet": SmallResNet}
"""Networks for the smallest pictures; each has options of its own, besides ``num_classes``."""

STUDENTS: dict[str, Builder] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "squeezenet1_0": squeezenet1_0,
    "squeezenet1_1": squeezenet1_1,
    "xception": xception,
}
"""Networks that were drawn to be small; options ``num_classes``, ``in_channels``, ``width`` and ``image_size``."""

TEACHERS: dict[str, Builder] = {
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vgg11": vgg11,
    "vgg11_bn": vgg11_bn,
    "vgg13": vgg13,
    "vgg13_bn": vgg13_bn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vgg19": vgg19,
    "vgg19_bn": vgg19_bn,
}
"""Networks that others are taught by; the same options."""

NETWORKS: dict[str, Builder] = {**LENETS, **STUDENTS, **TEACHERS}
"""Name -> function that builds the network."""


def build(name: str, **options: Any) -> nn.Module:
    """A network of the zoo with fresh weights.

    Students and teachers have the keys and shapes of torchvision or timm (ShuffleNetV1 excepted, which neither has), at
    any ``image_size``: ``build("mobilenet_v2").load_state_dict(...)`` takes people's pretrained weights. Only VGG's
    first linear layer depends on the size of the pictures.

    Args:
        name: of :data:`NETWORKS`.
        options: of the function behind the name: most often ``num_classes``, ``in_channels``, ``width`` and
            ``image_size``.

    Raises:
        CompressionError: an unknown name, or options that the network does not have or cannot be built with.

    >>> network = build("mobilenet_v2", num_classes=10, width=0.5, image_size=32)
    >>> sum(parameter.numel() for parameter in network.parameters())
    700490
    """
    if name not in NETWORKS:
        raise CompressionError(f"The zoo has no network {name!r}. {did_you_mean(str(name), NETWORKS)}")
    for option in ("num_classes", "in_channels", "image_size"):
        if not is_whole(options.get(option, 1)) or options.get(option, 1) < 1:
            raise CompressionError(f"{name} cannot be built with {option}={options[option]!r}: a whole number from 1.")
    try:
        return NETWORKS[name](**options)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CompressionError(f"{name} cannot be built with {options}: {error}") from error

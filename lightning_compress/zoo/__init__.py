"""Networks and real data to try things on.

``build("mobilenet_v2", num_classes=10, width=0.5, image_size=32)`` makes any of ``NETWORKS``: the LeNets, SqueezeNet,
MobileNet, ShuffleNet and Xception, and ResNet and VGG to teach them.
"""

from typing import TYPE_CHECKING, Any

from lightning_compress.zoo.catalog import NETWORKS, build
from lightning_compress.zoo.lenet import LeNet5, LeNet300
from lightning_compress.zoo.resnet import SmallResNet

if TYPE_CHECKING:
    from lightning_compress.zoo.classifier import Classifier
    from lightning_compress.zoo.digits import Digits
    from lightning_compress.zoo.textures import Textures

__all__ = ["NETWORKS", "Classifier", "Digits", "LeNet5", "LeNet300", "SmallResNet", "Textures", "build"]


def __getattr__(name: str) -> Any:
    """Imports what needs Lightning, scikit-learn or scikit-image when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{name.lower()}"), name)

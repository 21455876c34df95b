"""Where the units of a layer sit: which dimensions of its tensors and which of its attributes count them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Port:
    """One side of a layer: dimensions of its own tensors, and attributes, that all count the same units.

    Attributes:
        tensors: (name in the layer, dimension).
        attributes: names of attributes.
    """

    tensors: tuple[tuple[str, int], ...] = ()
    attributes: tuple[str, ...] = ()


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel is convolved by itself, in as out.

    >>> is_depthwise(nn.Conv2d(4, 4, 3, groups=4)), is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    (True, False)
    """
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def is_layer(module: nn.Module) -> bool:
    """Whether ``module`` mixes its inputs into units of its own: Linear and convolutions, except depthwise ones."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) and not is_depthwise(module)


def input_dim(module: nn.Module) -> int:
    """The dimension of the layer's weight that counts its inputs: 1, or 0 of a transposed convolution."""
    return 0 if getattr(module, "transposed", False) else 1


def port(module: nn.Module, *, output: bool) -> Port | str:
    """The output or the input side of ``module``, or the reason why its units cannot be taken out.

    Modules without tensors that count units (activations, pooling) have an empty port.

    >>> port(nn.Linear(3, 2), output=False)
    Port(tensors=(('weight', 1),), attributes=('in_features',))
    >>> port(nn.Conv2d(4, 4, 1, groups=2), output=True)
    'its 2 groups of channels would have to stay equally wide'
    """
    if is_depthwise(module):
        return _own(module, ("weight", "bias"), ("in_channels", "out_channels", "groups"))
    if isinstance(module, CONVOLUTIONS):
        if module.groups > 1:
            return f"its {module.groups} groups of channels would have to stay equally wide"
        return _side(module, output, "out_channels" if output else "in_channels")
    if isinstance(module, nn.Linear):
        return _side(module, output, "out_features" if output else "in_features")
    if isinstance(module, _BatchNorm | _InstanceNorm):
        return _own(module, ("weight", "bias", "running_mean", "running_var"), ("num_features",))
    if isinstance(module, nn.Embedding):
        return Port((("weight", 1),), ("embedding_dim",))
    if isinstance(module, nn.PReLU):
        return Port() if module.num_parameters == 1 else _own(module, ("weight",), ("num_parameters",))
    if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        return _own(module, ("weight", "bias"), ("num_channels", "num_groups"))
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return "normalisation over the cut channels cannot be exact: its statistics would be taken over fewer channels"
    if next(module.parameters(), None) is not None:
        return f"no rule says how a {type(module).__name__} shrinks"
    return Port()


def _side(module: nn.Module, output: bool, attribute: str) -> Port:
    dim = 1 - input_dim(module) if output else input_dim(module)
    bias = (("bias", 0),) if output and module.bias is not None else ()
    return Port((("weight", dim), *bias), (attribute,))


def _own(module: nn.Module, tensors: tuple[str, ...], attributes: tuple[str, ...]) -> Port:
    return Port(tuple((name, 0) for name in tensors if getattr(module, name) is not None), attributes)

"""Copies of a module to run in its place, so that the module itself is never touched."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

T = TypeVar("T")


def to_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype that holds no values.

    >>> to_meta(torch.ones(2, 3)).device.type
    'meta'
    """
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def to_own_storage(tensor: Tensor) -> Tensor:
    """A tensor of the same values that shares no storage and no graph with the original."""
    return tensor.detach().clone()


def tensors_replaced(arguments: T, replace: Callable[[Tensor], Tensor]) -> T:
    """The same nest of lists, tuples and dicts with every tensor replaced."""
    replaced: T = tree_map_only(Tensor, replace, arguments)
    return replaced


def tensors_in(nest: object) -> list[Tensor]:
    """The tensors of a nest of lists, tuples and dicts, in order.

    >>> len(tensors_in({"x": [torch.zeros(1), 3], "y": torch.ones(2)}))
    2
    """
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Every tensor that the module or one of its layers holds: parameters, buffers, and plain attributes."""
    return tensors_in([vars(layer) for layer in module.modules()])


def replica(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy in evaluation mode, uncompiled, without forward hooks, each tensor replaced by ``replace`` of it.

    Forward hooks are closures over somebody's state, which a forward of the copy must not change.

    >>> layer = nn.BatchNorm1d(3)
    >>> [tensor.device.type for tensor in replica(layer, to_meta).parameters()], layer.weight.device.type
    (['meta', 'meta'], 'cpu')
    """
    memo = {id(tensor): _replaced(tensor, replace) for tensor in tensors_of(module)}
    twin = _uncompiled(copy.deepcopy(module, memo))
    for layer in list(twin.modules()):
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
        for name, child in layer.named_children():
            setattr(layer, name, _uncompiled(child))
    return twin.eval()


def _uncompiled(module: nn.Module) -> nn.Module:
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def _replaced(tensor: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
    new = replace(tensor)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

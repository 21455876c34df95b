"""Modules replaced by what a spec describes, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import Inverse, find_module
from lightning_compress.plan.specs import Extent, ModuleSpec, build_module, check_spec, plain

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
"""Where a module keeps who looks on as it is called."""


Setting: TypeAlias = tuple[nn.Module, str, Any]
"""A module, the name of an attribute, and its value."""


@dataclass(frozen=True)
class ReplaceModule:
    """The module at ``module`` replaced by what ``spec`` describes, with zero weights (norms at their identity).

    Whoever decides the edit fills the weights in; a file brings its own. The original is kept by the inverse, outside
    the tree. A module that stands in several places is replaced in all of them. Hooks on it go over to the new one.
    An ``nn.TransformerEncoderLayer`` whose ``linear1`` or ``linear2`` has no weight any more goes its ordinary way in
    evaluation: the fused operation would read that weight.

    Attributes:
        module: dotted name.
        spec: a copy of it in dictionaries and lists.
        label: the edit in a few words.
        extent: how large the replacement is.

    Raises:
        PlanError: the root itself, or a spec outside the closed set.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    >>> factored = {"type": "Sequential", "children": [
    ...     ["0", {"type": "Linear", "arguments": {"in_features": 8, "out_features": 2, "bias": False}}],
    ...     ["1", {"type": "Linear", "arguments": {"in_features": 2, "out_features": 8}}]]}
    >>> inverse = ReplaceModule("0", factored).apply(net)
    >>> [tuple(p.shape) for p in net[0].parameters()]
    [(2, 8), (8, 2), (8,)]
    >>> _ = inverse.apply(net)
    >>> net[0]
    Linear(in_features=8, out_features=8, bias=True)
    """

    module: str
    spec: ModuleSpec
    label: str = ""
    extent: Extent = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        if not self.module:
            raise PlanError("The root module itself cannot be replaced.")
        object.__setattr__(self, "extent", check_spec(self.spec))
        object.__setattr__(self, "spec", plain(self.spec))

    @property
    def touched(self) -> frozenset[str]:
        """The replaced module's name with a star: everything below it."""
        return frozenset({f"{self.module}.*"})

    def check(self, module: nn.Module) -> None:
        """Refuse a place that does not exist."""
        find_module(module, self.module)

    def apply(self, module: nn.Module) -> RestoreModule:
        """Put the new module in; returns the inverse, which holds the original."""
        original = find_module(module, self.module)
        tensors = chain(original.parameters(), module.parameters())
        anchor = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        replacement = build_module(self.spec, device=anchor.device, dtype=anchor.dtype)
        _put(module, original, replacement)
        settings = () if hasattr(replacement, "weight") else tuple(_fused(module, replacement))
        for owner, name, _ in settings:
            setattr(owner, name, 0)
        return RestoreModule(self, original, settings)

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """Nothing carries over: the tensors below the replaced module are new."""
        return tensor


@dataclass(frozen=True, eq=False)
class RestoreModule(Inverse[ReplaceModule]):
    """The inverse of :class:`ReplaceModule`: puts the kept original back."""

    original: nn.Module | None
    settings: tuple[Setting, ...] = ()

    def check(self, module: nn.Module) -> None:
        """Refuse a module that lost the place, and an original that nobody kept."""
        find_module(module, self.of.module)
        if self.original is None:
            raise PlanError(
                f"{self.of.module!r}: nobody kept the original module. Load the checkpoint into a fresh network."
            )

    def apply(self, module: nn.Module) -> ReplaceModule:
        """Put the original back where it was, on the network's present device."""
        self.check(module)
        assert self.original is not None
        replaced = find_module(module, self.of.module)
        anchor = next(chain(replaced.parameters(), module.parameters()), None)
        if anchor is not None:
            self.original.to(anchor.device)
        _put(module, replaced, self.original)
        for owner, name, value in self.settings:
            setattr(owner, name, value)
        return self.of


def _fused(root: nn.Module, child: nn.Module) -> Iterator[Setting]:
    """What lets the encoder layers around ``child``, and the encoders around those, use the fused operation."""
    layers = [part for part in root.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    layers = [layer for layer in layers if layer.linear1 is child or layer.linear2 is child]
    for layer in layers:
        yield layer, "activation_relu_or_gelu", layer.activation_relu_or_gelu
    for part in root.modules():
        if isinstance(part, nn.TransformerEncoder) and any(layer in layers for layer in part.layers):
            yield part, "use_nested_tensor", part.use_nested_tensor


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """``new`` in all the places of ``old``; trains or evaluates as that one did, and is watched by the same hooks."""
    if new.training != old.training:
        new.train(old.training)
    for hooks in HOOKS:
        setattr(new, hooks, getattr(old, hooks))  # the same dictionary: a handle removes its hook as before
    places = [(owner, key) for owner in root.modules() for key, child in owner._modules.items() if child is old]
    for owner, key in places:
        setattr(owner, key, new)

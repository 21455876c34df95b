"""Edits: the smallest changes to a network's shape, in primitives and index tensors only, each with its inverse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lightning_compress.errors import PlanError
from lightning_compress.plan.specs import ModuleSpec, build_module, check_spec

ATTRIBUTES = frozenset(
    [
        "in_features",
        "out_features",
        "in_channels",
        "out_channels",
        "groups",
        "num_features",
        "num_channels",
        "num_groups",
        "normalized_shape",
        "num_parameters",
        "num_embeddings",
        "embedding_dim",
        "embed_dim",
        "num_heads",
        "head_dim",
        "kdim",
        "vdim",
        "hidden_size",
        "input_size",
    ]
)
"""Names of module attributes that an edit may change; a file can name no other."""

AttributeValue: TypeAlias = int | tuple[int, ...]


class Edit(Protocol):
    """One change of shape. ``apply`` checks first, changes the module, and returns the edit that takes it back."""

    @property
    def label(self) -> str:
        """The edit in a few words."""

    def check(self, module: nn.Module) -> None:
        """Raise :class:`PlanError` if the edit does not fit ``module``; touch nothing."""

    def apply(self, module: nn.Module) -> Edit:
        """Change ``module`` in place and return the inverse."""

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor``, shaped like the tensor ``name`` before the edit, reshaped as the edit reshapes that one."""

    @property
    def touched(self) -> frozenset[str]:
        """Names of the parameters and buffers whose shape the edit changes."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The indices kept along one dimension of one parameter or buffer.

    Attributes:
        tensor: dotted name in the module.
        dim: dimension that shrinks.
        size: its length before.
        kept: int64 indices that stay, strictly increasing, shape (n,), 1 <= n <= size.
    """

    tensor: str
    dim: int
    size: int
    kept: Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slice):
            return NotImplemented
        mine, theirs = (self.tensor, self.dim, self.size), (other.tensor, other.dim, other.size)
        return mine == theirs and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.tensor, self.dim, self.size, self.kept.numel()))


@dataclass(frozen=True)
class Attribute:
    """A number on a module that describes its shape, before and after: ``('conv1', 'out_channels', 16, 12)``."""

    module: str
    name: str
    before: AttributeValue
    after: AttributeValue


@dataclass(frozen=True)
class KeepIndices:
    """Neurons taken out: of each tensor named in ``slices`` only the kept indices stay.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> kept = torch.tensor([0, 2])
    >>> edit = KeepIndices(
    ...     slices=(Slice("0.weight", 0, 3, kept), Slice("0.bias", 0, 3, kept), Slice("1.weight", 1, 3, kept)),
    ...     attributes=(Attribute("0", "out_features", 3, 2), Attribute("1", "in_features", 3, 2)),
    ...     label="one neuron of '0'",
    ... )
    >>> inverse = edit.apply(net)
    >>> net[0].weight.shape, net[1].in_features
    (torch.Size([2, 4]), 2)
    >>> _ = inverse.apply(net)  # comes back, as zeros
    >>> net[0].weight.shape, net[0].bias[1].item()
    (torch.Size([3, 4]), 0.0)
    """

    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...] = ()
    label: str = ""
    kind: ClassVar[str] = "keep"

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that shrink."""
        return frozenset(part.tensor for part in self.slices)

    def check(self, module: nn.Module) -> None:
        """Refuse tensors that do not exist or have another size, indices out of range, attributes that differ."""
        tensors = named_tensors(module)
        seen: set[tuple[int, int]] = set()
        for part in self.slices:
            tensor = tensors.get(part.tensor)
            if tensor is None:
                raise PlanError(f"{self.label or 'An edit'}: the module has no tensor {part.tensor!r}.")
            check_slice(part)
            if part.dim >= tensor.dim() or tensor.shape[part.dim] != part.size:
                raise PlanError(
                    f"{part.tensor!r} has shape {tuple(tensor.shape)}; the edit expects {part.size} entries along "
                    f"dimension {part.dim}. The module is not the one that this Plan was made for."
                )
            if (id(tensor), part.dim) in seen:
                raise PlanError(f"{part.tensor!r} is cut twice along dimension {part.dim} in one edit.")
            seen.add((id(tensor), part.dim))
        for change in self.attributes:
            _check_attribute(module, change)

    def apply(self, module: nn.Module) -> RegrowIndices:
        """Swap each tensor for its kept part (a new Parameter, no gradient) and set the attributes."""
        self.check(module)
        _swap_tensors(module, self)
        for change in self.attributes:
            setattr(module.get_submodule(change.module), change.name, change.after)
        return RegrowIndices(self)

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """The kept part of ``tensor``; as it is where the edit does not touch ``name``."""
        for part in self.slices:
            if part.tensor == name:
                tensor = tensor.index_select(part.dim, part.kept.to(tensor.device))
        return tensor


@dataclass(frozen=True)
class RegrowIndices:
    """The inverse of :class:`KeepIndices`: what was taken out comes back, as zeros."""

    of: KeepIndices

    @property
    def label(self) -> str:
        """What is taken back."""
        return f"undo: {self.of.label}"

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that grow."""
        return self.of.touched

    def check(self, module: nn.Module) -> None:
        """Refuse a module whose tensors are not as the edit left them."""
        tensors = named_tensors(module)
        for part in self.of.slices:
            tensor = tensors.get(part.tensor)
            if tensor is None or tensor.dim() <= part.dim or tensor.shape[part.dim] != part.kept.numel():
                shape = None if tensor is None else tuple(tensor.shape)
                raise PlanError(f"Cannot undo {self.of.label!r}: {part.tensor!r} has shape {shape}.")

    def apply(self, module: nn.Module) -> KeepIndices:
        """Grow the tensors again; returns the edit that cuts them."""
        self.check(module)
        _swap_tensors(module, self)
        for change in self.of.attributes:
            setattr(module.get_submodule(change.module), change.name, change.before)
        return self.of

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` with zeros where entries had been taken out."""
        for part in reversed(self.of.slices):
            if part.tensor == name:
                shape = list(tensor.shape)
                shape[part.dim] = part.size
                tensor = tensor.new_zeros(shape).index_copy_(part.dim, part.kept.to(tensor.device), tensor)
        return tensor


@dataclass(frozen=True)
class ReplaceModule:
    """The module at ``module`` replaced by what ``spec`` describes, with zero weights (norms at their identity).

    Whoever decides the edit fills the weights in; a file brings its own. The original is kept by the inverse, outside the tree.

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
    kind: ClassVar[str] = "replace"

    @property
    def touched(self) -> frozenset[str]:
        """The replaced module's name with a star: everything below it."""
        return frozenset({f"{self.module}.*"})

    def check(self, module: nn.Module) -> None:
        """Refuse a place that does not exist and a spec outside the closed set."""
        check_spec(self.spec)
        _get_submodule(module, self.module)
        if not self.module:
            raise PlanError("The root module itself cannot be replaced.")

    def apply(self, module: nn.Module) -> RestoreModule:
        """Put the new module in; returns the inverse, which holds the original."""
        self.check(module)
        original = module.get_submodule(self.module)
        anchor = next(iter([*original.parameters(), *module.parameters()]), torch.empty(0))
        replacement = build_module(self.spec, device=anchor.device, dtype=anchor.dtype)
        replacement.train(original.training)
        module.set_submodule(self.module, replacement)
        return RestoreModule(self, original)

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """Nothing carries over: the tensors below the replaced module are new."""
        return tensor


@dataclass(frozen=True, eq=False)
class RestoreModule:
    """The inverse of :class:`ReplaceModule`: puts the kept original back."""

    of: ReplaceModule
    original: nn.Module | None

    @property
    def label(self) -> str:
        """What is taken back."""
        return f"undo: {self.of.label}"

    @property
    def touched(self) -> frozenset[str]:
        """The replaced module's name with a star."""
        return self.of.touched

    def check(self, module: nn.Module) -> None:
        """Refuse a module that lost the place."""
        _get_submodule(module, self.of.module)
        if self.original is None:
            raise PlanError(
                f"{self.of.module!r}: nobody kept the original module. Load the checkpoint into a fresh network."
            )

    def apply(self, module: nn.Module) -> ReplaceModule:
        """Put the original back where it was."""
        self.check(module)
        assert self.original is not None
        replaced = module.get_submodule(self.of.module)
        anchor = next(replaced.parameters(), None)
        if anchor is not None:
            self.original.to(anchor.device)
        self.original.train(replaced.training)
        module.set_submodule(self.of.module, self.original)
        return self.of

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """Nothing carries over."""
        return tensor


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have; a tied tensor appears under each.

    >>> sorted(named_tensors(nn.BatchNorm1d(2, affine=False)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def check_slice(part: Slice) -> None:
    """Refuse indices that are not a strictly increasing, non-empty selection of ``range(part.size)``."""
    kept = part.kept
    if kept.dim() != 1 or kept.dtype != torch.int64:
        raise PlanError(
            f"{part.tensor!r}: kept indices must be a vector of int64, not {kept.dtype} of {tuple(kept.shape)}."
        )
    if kept.numel() == 0:
        raise PlanError(f"{part.tensor!r} would be left with nothing along dimension {part.dim} (of {part.size}).")
    rising = bool((kept[1:] > kept[:-1]).all())
    if not rising or int(kept[0]) < 0 or int(kept[-1]) >= part.size:
        raise PlanError(f"{part.tensor!r}: kept indices must rise strictly within 0..{part.size - 1}.")


def _check_attribute(module: nn.Module, change: Attribute) -> None:
    owner = _get_submodule(module, change.module)
    if change.name not in ATTRIBUTES:
        raise PlanError(f"{change.module!r}: an edit may not set the attribute {change.name!r}.")
    value = getattr(owner, change.name, None)
    if value != change.before:
        raise PlanError(f"{change.module!r} has {change.name}={value!r}; the edit expects {change.before!r}.")


def _get_submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise PlanError(f"The module has no submodule {name!r}.") from error


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        for key, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                yield f"{prefix}{key}", owner, key, tensor


@torch.no_grad()
def _swap_tensors(module: nn.Module, edit: KeepIndices | RegrowIndices) -> None:
    """Replace every touched tensor, under all the names it has, by its carried version."""
    owners = list(_owners(module))
    canonical = {id(tensor): name for name, _, _, tensor in owners if name in edit.touched}
    swapped: dict[int, Tensor] = {}
    for _, owner, key, tensor in owners:
        name = canonical.get(id(tensor))
        if name is None:
            continue
        if id(tensor) not in swapped:
            new = edit.carry(name, tensor.detach()).contiguous()
            parameter = isinstance(tensor, nn.Parameter)
            swapped[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if parameter else new
        setattr(owner, key, swapped[id(tensor)])

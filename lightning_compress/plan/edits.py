"""Edits: the smallest changes to a network's shape, in primitives and index tensors only, each with its inverse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lightning_compress.errors import PlanError, did_you_mean
from lightning_compress.plan.fewer_heads import settle_

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
        "n_heads",
        "n_head",
        "heads",
        "nhead",
        "num_attention_heads",
        "all_head_size",
        "inner_dim",
        "dim",
        "head_dim",
        "kdim",
        "vdim",
        "hidden_size",
        "input_size",
    ]
)
"""Names of module attributes that an edit may change; a file can name no other."""

AttributeValue: TypeAlias = int | tuple[int, ...]

MAX_SIZE, MAX_DIMENSION = 2**26, 8
"""Longest dimension that an edit cuts, and the number of dimensions: the bounds that a file is held to hold for all."""


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
        tensor: dotted name in the module; of a tied tensor the first of its names.
        dim: dimension that shrinks, from 0.
        size: its length before.
        kept: int64 indices that stay, strictly increasing, shape (n,), 1 <= n <= size; a copy, on the CPU.

    Raises:
        PlanError: any of it out of range.

    >>> Slice("fc.weight", 0, 3, torch.tensor([2, 0]))
    Traceback (most recent call last):
    lightning_compress.errors.PlanError: 'fc.weight': kept indices must rise strictly within 0..2.
    """

    tensor: str
    dim: int
    size: int
    kept: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.dim < MAX_DIMENSION or not 1 <= self.size <= MAX_SIZE:
            raise PlanError(f"{self.tensor!r}: no dimension {self.dim} of {self.size} entries can be cut.")
        kept = self.kept.detach()
        if kept.dim() != 1 or kept.dtype != torch.int64 or kept.layout != torch.strided or kept.is_meta:
            raise PlanError(
                f"{self.tensor!r}: kept indices must be a vector of int64, not {kept.dtype} in {kept.dim()} dimensions."
            )
        if kept.numel() == 0:
            raise PlanError(f"{self.tensor!r} would be left with nothing along dimension {self.dim} (of {self.size}).")
        inside = kept.numel() <= self.size and int(kept[0]) >= 0 and int(kept[-1]) < self.size
        if not inside or not bool((kept[1:] > kept[:-1]).all()):
            raise PlanError(f"{self.tensor!r}: kept indices must rise strictly within 0..{self.size - 1}.")
        object.__setattr__(self, "kept", kept.to("cpu", copy=True).contiguous())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slice):
            return NotImplemented
        mine, theirs = (self.tensor, self.dim, self.size), (other.tensor, other.dim, other.size)
        return mine == theirs and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.tensor, self.dim, self.size, self.kept.numel()))


AnyEdit = TypeVar("AnyEdit", bound=Edit)


@dataclass(frozen=True)
class Attribute:
    """A number on a module that describes its shape, before and after: ``('conv1', 'out_channels', 16, 12)``.

    Raises:
        PlanError: a name outside of :data:`ATTRIBUTES`, or a value that grows or vanishes.
    """

    module: str
    name: str
    before: AttributeValue
    after: AttributeValue

    def __post_init__(self) -> None:
        if self.name not in ATTRIBUTES:
            raise PlanError(
                f"{self.module!r}: an edit may not set {self.name!r}. {did_you_mean(self.name, ATTRIBUTES)}"
            )
        pairs = [tuple(value) if isinstance(value, tuple) else (value,) for value in (self.before, self.after)]
        alike = type(self.before) is type(self.after) and len(pairs[0]) == len(pairs[1])
        if not alike or not all(1 <= after <= before for before, after in zip(*pairs, strict=True)):
            raise PlanError(f"{self.module!r}: {self.name} cannot shrink from {self.before!r} to {self.after!r}.")


@dataclass(frozen=True)
class KeepIndices:
    """Neurons taken out: of each tensor named in ``slices`` only the kept indices stay.

    Raises:
        PlanError: a tensor is cut twice along one dimension, or an attribute set twice.

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

    def __post_init__(self) -> None:
        _refuse_twins(((part.tensor, part.dim) for part in self.slices), "is cut twice along dimension")
        _refuse_twins(((change.module, change.name) for change in self.attributes), "is given twice its")

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that shrink."""
        return frozenset(part.tensor for part in self.slices)

    def check(self, module: nn.Module) -> None:
        """Refuse tensors that do not exist or have another size, and attributes that differ."""
        _check_tensors(module, self.label, [(part, part.size) for part in self.slices])
        _check_attributes(module, [(change, change.before) for change in self.attributes])

    def apply(self, module: nn.Module) -> RegrowIndices:
        """Swap each tensor for its kept part (a new Parameter, no gradient) and set the attributes."""
        self.check(module)
        _swap_tensors(module, self)
        _set_attributes(module, [(change, change.after) for change in self.attributes])
        return RegrowIndices(self)

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """The kept part of ``tensor``; as it is where the edit does not touch ``name``."""
        for part in self.slices:
            if part.tensor == name:
                tensor = tensor.index_select(part.dim, part.kept.to(tensor.device))
        return tensor


@dataclass(frozen=True, eq=False)
class Inverse(Generic[AnyEdit]):
    """What takes an edit back: named after it, and of the same tensors."""

    of: AnyEdit

    @property
    def label(self) -> str:
        """What is taken back."""
        return f"undo: {self.of.label}"

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that the edit changed."""
        return self.of.touched

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """Nothing carries over, unless a subclass knows better."""
        return tensor


@dataclass(frozen=True)
class RegrowIndices(Inverse[KeepIndices]):
    """The inverse of :class:`KeepIndices`: what was taken out comes back, as zeros."""

    def check(self, module: nn.Module) -> None:
        """Refuse a module whose tensors or attributes are not as the edit left them."""
        _check_tensors(module, self.label, [(part, part.kept.numel()) for part in self.of.slices])
        _check_attributes(module, [(change, change.after) for change in self.of.attributes])

    def apply(self, module: nn.Module) -> KeepIndices:
        """Grow the tensors again; returns the edit that cuts them."""
        self.check(module)
        _swap_tensors(module, self)
        _set_attributes(module, [(change, change.before) for change in self.of.attributes])
        return self.of

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` with zeros where entries had been taken out."""
        for part in reversed(self.of.slices):
            if part.tensor == name:
                shape = list(tensor.shape)
                shape[part.dim] = part.size
                tensor = tensor.new_zeros(shape).index_copy_(part.dim, part.kept.to(tensor.device), tensor)
        return tensor


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have; a tied tensor appears under each.

    >>> sorted(named_tensors(nn.BatchNorm1d(2, affine=False)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def first_names(module: nn.Module) -> dict[int, str]:
    """The name by which an edit calls each tensor, by the tensor's ``id``."""
    names: dict[int, str] = {}
    for name, tensor in named_tensors(module).items():
        names.setdefault(id(tensor), name)
    return names


def find_module(module: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``; looks nowhere but in the tree (``get_submodule`` runs a user's properties)."""
    found: nn.Module | None = dict(module.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise PlanError(f"The module has no submodule {name!r}.")
    return found


def _refuse_twins(pairs: Iterable[tuple[str, Any]], what: str) -> None:
    seen: set[tuple[str, Any]] = set()
    for pair in pairs:
        if pair in seen:
            raise PlanError(f"{pair[0]!r} {what} {pair[1]} in one edit.")
        seen.add(pair)


def _check_tensors(module: nn.Module, label: str, sizes: Iterable[tuple[Slice, int]]) -> None:
    tensors, first = named_tensors(module), first_names(module)
    for part, size in sizes:
        tensor = tensors.get(part.tensor)
        if tensor is None:
            raise PlanError(f"{label or 'An edit'}: the module has no tensor {part.tensor!r}.")
        if first[id(tensor)] != part.tensor:
            raise PlanError(f"{part.tensor!r} is the same tensor as {first[id(tensor)]!r}: call it that.")
        if part.dim >= tensor.dim() or tensor.shape[part.dim] != size:
            raise PlanError(
                f"{label or 'An edit'}: {part.tensor!r} has shape {tuple(tensor.shape)}; {size} entries are expected "
                f"along dimension {part.dim}. The module is not the one that this Plan was made for."
            )


def _check_attributes(module: nn.Module, values: Iterable[tuple[Attribute, AttributeValue]]) -> None:
    modules = dict(module.named_modules(remove_duplicate=False))
    for change, value in values:
        if change.module not in modules:
            raise PlanError(f"The module has no submodule {change.module!r}.")
        present = getattr(modules[change.module], change.name, None)
        if present != value:
            raise PlanError(f"{change.module!r} has {change.name}={present!r}; the edit expects {value!r}.")


def _set_attributes(module: nn.Module, values: Iterable[tuple[Attribute, AttributeValue]]) -> None:
    for change, value in values:
        owner = module.get_submodule(change.module)
        setattr(owner, change.name, value)
        settle_(owner)


@torch.no_grad()
def _swap_tensors(module: nn.Module, edit: KeepIndices | RegrowIndices) -> None:
    """Replace every touched tensor, under all the names it has, by its carried version."""
    names, new = first_names(module), dict[str, Tensor]()
    places = []
    for owner in module.modules():
        for key, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            name = names.get(id(tensor), "")
            if tensor is not None and name in edit.touched:
                new[name] = new[name] if name in new else _like(tensor, edit.carry(name, tensor.detach()))
                places.append((owner, key, name))
    for owner, key, name in places:
        setattr(owner, key, new[name])


def _like(old: Tensor, values: Tensor) -> Tensor:
    """``values`` as a Parameter or a buffer, as ``old`` is one, with what users have set on it."""
    values = values.contiguous()
    new = nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values
    vars(new).update(vars(old))
    return new

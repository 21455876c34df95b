"""Groups: the tensor dimensions that shrink together when neurons are taken out, and the edits that do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan.edits import Attribute, KeepIndices, Slice


@dataclass(frozen=True, eq=False)
class Coupled:
    """One dimension of one tensor that shrinks with a group.

    Attributes:
        tensor: dotted name; of a tied tensor, the first of its names.
        dim: the dimension.
        units: int64, as long as the dimension: the unit that each index belongs to, -1 where it belongs to none of the
            group's (another producer's channels behind a concatenation).
    """

    tensor: str
    dim: int
    units: Tensor


@dataclass(frozen=True, eq=False)
class Counted:
    """An attribute of a module that counts indices (``out_features``, ``groups``, ...) and shrinks with a group.

    Attributes:
        module: dotted name.
        name: of the attribute.
        units: int64, as long as the attribute's value, with the meaning of :attr:`Coupled.units`.
    """

    module: str
    name: str
    units: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units (neurons, channels) that can be taken out, each of them everywhere at once.

    Attributes:
        name: the first producing layer, in the order of ``named_modules``; no two groups share a producing layer.
        size: number of units.
        producers: the layers whose outputs are the units: dimension 0 of the weight (1 of a transposed convolution's).
        consumers: the layers that read the units: dimension 1 of the weight (0 of a transposed convolution's).
        coupled: all that shrinks, in a fixed order.
        attributes: the attributes that shrink with it.
        rows: producer -> the (tensor, dimension) of its weights whose entries make the units.
        norms: normalisations that average over the units, so that taking some out is an approximation; empty unless
            approximations were asked for.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    coupled: tuple[Coupled, ...]
    attributes: tuple[Counted, ...]
    rows: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    norms: tuple[str, ...] = ()

    def keep(self, units: Tensor) -> KeepIndices:
        """The edit that leaves only ``units``.

        Args:
            units: int64, the units that stay, strictly increasing.

        Raises:
            CompressionError: no unit, one out of range, or not in increasing order.
        """
        stays = self._mask(units)
        slices = []
        for part in self.coupled:
            kept = _kept(part.units, stays)
            if kept.numel() == 0:
                raise CompressionError(f"{self.name!r}: {part.tensor!r} would be left with nothing. Keep more units.")
            slices.append(Slice(part.tensor, part.dim, part.units.numel(), kept))
        attributes = tuple(_attribute(part, _kept(part.units, stays).numel()) for part in self.attributes)
        removed = self.size - units.numel()
        return KeepIndices(tuple(slices), attributes, f"{removed} of {self.size} units of {self.name!r}")

    def _mask(self, units: Tensor) -> Tensor:
        if units.dim() != 1 or units.dtype != torch.int64 or units.numel() == 0:
            raise CompressionError(
                f"{self.name!r} has {self.size} units; those to keep must be a vector of at least one int64, "
                f"not {units.dtype} of shape {tuple(units.shape)}."
            )
        units = units.cpu()
        if int(units.min()) < 0 or int(units.max()) >= self.size or not bool((units[1:] > units[:-1]).all()):
            raise CompressionError(f"{self.name!r}: units to keep must rise strictly within 0..{self.size - 1}.")
        return torch.zeros(self.size, dtype=torch.bool).index_fill_(0, units, True)


class Groups(Sequence[Group]):
    """The groups of a network, in the order of their names in the network, and what was left out.

    Attributes:
        skipped: layer -> the reason why its outputs cannot be taken out.
    """

    def __init__(self, groups: Sequence[Group], skipped: dict[str, str]) -> None:
        self._groups = tuple(groups)
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Group:  # type: ignore[override]
        return self._groups[index]

    def named(self, name: str) -> Group:
        """The group with ``name`` among its producers.

        Raises:
            CompressionError: there is none; the message has the reason if the layer was skipped.
        """
        for group in self._groups:
            if name in group.producers:
                return group
        if name in self.skipped:
            raise CompressionError(f"No units of {name!r} can be taken out: {self.skipped[name]}")
        known = [producer for group in self._groups for producer in group.producers]
        raise CompressionError(f"No group of units is produced by {name!r}. {did_you_mean(name, known)}")


def merge(edits: Sequence[KeepIndices]) -> KeepIndices:
    """One edit that does what several edits of different groups of one network do.

    A tensor cut along two dimensions appears once for each; where several groups cut the same dimension (behind a
    concatenation) what all of them keep stays.

    Args:
        edits: made for the same, uncut network.

    Raises:
        CompressionError: no edits, edits for different networks, or two that take out the same entries.

    >>> counts = (Attribute("fc", "in_features", 4, 3),)
    >>> parts = [torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2])]
    >>> merged = merge([KeepIndices((Slice("fc.weight", 1, 4, kept),), counts) for kept in parts])
    >>> merged.slices[0].kept.tolist(), merged.attributes[0].after
    ([0, 2], 2)
    """
    if not edits:
        raise CompressionError("There is no edit to merge.")
    slices: dict[tuple[str, int], Slice] = {}
    attributes: dict[tuple[str, str], Attribute] = {}
    for edit in edits:
        for part in edit.slices:
            other = slices.get((part.tensor, part.dim))
            slices[part.tensor, part.dim] = part if other is None else _intersect(other, part)
        for change in edit.attributes:
            first = attributes.get((change.module, change.name))
            attributes[change.module, change.name] = change if first is None else _add(first, change)
    label = edits[0].label if len(edits) == 1 else "; ".join(edit.label for edit in edits)
    return KeepIndices(tuple(slices.values()), tuple(attributes.values()), label)


def _intersect(one: Slice, two: Slice) -> Slice:
    where = f"{one.tensor!r}, dimension {one.dim}"
    if one.size != two.size:
        raise CompressionError(f"{where}: edits for {one.size} and for {two.size} entries are of different networks.")
    stays = torch.zeros(one.size, dtype=torch.int64)
    stays[one.kept] += 1
    stays[two.kept] += 1
    if bool((stays == 0).any()):
        raise CompressionError(f"{where}: two edits take out the same entries. Merge one edit of each group.")
    kept = torch.nonzero(stays == 2).flatten()
    if kept.numel() == 0:
        raise CompressionError(f"{where}: the edits together would leave nothing. Keep more units.")
    return Slice(one.tensor, one.dim, one.size, kept)


def _attribute(part: Counted, left: int) -> Attribute:
    before = part.units.numel()
    if part.name == "normalized_shape":
        return Attribute(part.module, part.name, (before,), (left,))
    return Attribute(part.module, part.name, before, left)


def _add(one: Attribute, two: Attribute) -> Attribute:
    if one.before != two.before:
        raise CompressionError(f"{one.module!r}: edits that change {one.name} from {one.before} and {two.before}.")
    before, first, second = (x if isinstance(x, tuple) else (x,) for x in (one.before, one.after, two.after))
    left = tuple(a + b - whole for whole, a, b in zip(before, first, second, strict=True))
    return Attribute(one.module, one.name, one.before, left if isinstance(one.before, tuple) else left[0])


def _kept(units: Tensor, stays: Tensor) -> Tensor:
    """Indices that stay: of units that stay, and of no unit of the group."""
    return torch.nonzero((units < 0) | stays[units.clamp(min=0)]).flatten()

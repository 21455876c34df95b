"""Judging neurons and choosing which go: pure functions on groups, scores and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_compress.errors import CompressionError
from lightning_compress.measure import measure
from lightning_compress.plan import KeepIndices
from lightning_compress.plan.edits import first_names
from lightning_compress.pruning.evidence import Criterion, Evidence
from lightning_compress.surgery import Group, TracingInput, merge, private_copy
from lightning_compress.surgery.ports import input_dim

COUNTS = ("channels", "params", "macs")
"""What an amount of neurons can be counted in."""


@dataclass(frozen=True)
class Selection:
    """A cut that has been chosen.

    Attributes:
        edit: takes the neurons out; None where none go.
        reached: share that is gone after it, of what there was at first.
        removed: neurons that go, by group.
        kept: neurons that stay, by group.
    """

    edit: KeepIndices | None
    reached: float
    removed: dict[str, int]
    kept: dict[str, Tensor]


def weights_of_units(module: nn.Module, group: Group) -> Tensor:
    """The weights that make each unit of ``group``, in fp32, shape (units, weights of each)."""
    names = first_names(module)
    units = {(part.tensor, part.dim): part.units for part in group.coupled}
    columns = []
    for name in group.producers:
        layer = module.get_submodule(name)
        weight, dim = layer.get_parameter("weight").detach(), 1 - input_dim(layer)
        rows = weight.float().movedim(dim, 0).flatten(1)
        columns.append(_rows(rows, units[names[id(layer.weight)], dim].to(rows.device), group.size))
    return torch.cat(columns, dim=1)


def judge(criterion: Criterion, evidence: Evidence) -> Tensor:
    """One finite score for each neuron.

    Scores of single weights become the L2 norm over the neuron's weights, divided by the group's mean, so that groups
    of unlike scale can be compared. A criterion that scores neurons itself is taken at its word.

    Raises:
        CompressionError: scores of another shape, or not finite.
    """
    units = len(evidence.weight)
    scores = criterion(evidence).float()
    if scores.shape == evidence.weight.shape and scores.dim() > 1:
        scores = scores.square().sum(dim=1).sqrt()
        scores = scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
    if scores.shape != (units,):
        raise CompressionError(
            f"The criterion gave scores of shape {tuple(scores.shape)} for {evidence.name!r}; expected ({units},) or "
            "the weight's."
        )
    if not bool(torch.isfinite(scores).all()):
        raise CompressionError(
            f"The criterion gave NaN or infinity for {evidence.name!r}: its weights or data are not finite."
        )
    return scores.cpu()


class Count:
    """How much of a network there is, in channels, params or macs, now and after a cut.

    Args:
        module: the network.
        tracing: a call that runs it.
        of: one of :data:`COUNTS`.
    """

    def __init__(self, module: nn.Module, tracing: TracingInput, of: str) -> None:
        self._of = of
        self._sizes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self._tracing = tracing
        self._copy = private_copy(module) if of == "macs" else None

    def after(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> int:
        """The count once only ``kept`` units of each group are left."""
        if self._of == "channels":
            return sum(kept[group.name].numel() for group in groups)
        edit = edit_for(groups, kept)
        return self._parameters(edit) if self._copy is None else self._macs(self._copy, edit)

    def _parameters(self, edit: KeepIndices | None) -> int:
        sizes = {name: list(shape) for name, shape in self._sizes.items()}
        for part in edit.slices if edit is not None else ():
            if part.tensor in sizes:
                sizes[part.tensor][part.dim] = part.kept.numel()
        return sum(prod(shape) for shape in sizes.values())

    def _macs(self, network: nn.Module, edit: KeepIndices | None) -> int:
        if edit is None:
            return macs(network, self._tracing)
        inverse = edit.apply(network)
        try:
            return macs(network, self._tracing)
        finally:
            inverse.apply(network)


def macs(module: nn.Module, tracing: TracingInput) -> int:
    """Multiply-accumulates of the traced call."""
    network = module.get_submodule(tracing.module)
    if tracing.kwargs and tracing.args:
        network, arguments = _Positional(network, list(tracing.kwargs)), (*tracing.args, *tracing.kwargs.values())
        return measure(network, arguments).macs
    return measure(network, tracing.kwargs or tracing.args).macs


def select(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    count: Callable[[Mapping[str, Tensor]], int],
    *,
    base: int,
    target: float,
    min_channels: int = 1,
) -> Selection:
    """The lowest-scored neurons whose removal comes nearest to ``target``, the share of ``base`` that is to be gone.

    Each group keeps at least ``min_channels``. Ties fall to the earlier neuron.

    Raises:
        CompressionError: even the largest possible cut stays short of the target.
    """
    queue = _Queue(groups, scores, min_channels)

    @cache
    def gone(number: int) -> float:
        return (base - count(queue.kept(number))) / base

    low, high = 0, len(queue)
    if gone(high) < target:
        narrow = min(groups, key=lambda group: group.size)
        raise CompressionError(
            f"{target:.1%} cannot be taken away: with {min_channels} left in each layer at most {gone(high):.1%} is "
            f"gone; the narrowest, {narrow.name!r}, has {narrow.size}. Ask for less, lower min_channels, or exclude "
            "fewer layers."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gone(middle) < target else (low, middle)
    best = min((low, high), key=lambda number: abs(gone(number) - target))
    kept = queue.kept(best)
    removed = {group.name: group.size - kept[group.name].numel() for group in groups}
    removed = {name: number for name, number in removed.items() if number}
    return Selection(edit_for(groups, kept), gone(best), removed, kept)


def edit_for(groups: Sequence[Group], kept: Mapping[str, Tensor]) -> KeepIndices | None:
    """One edit that leaves ``kept`` units of each group; None where all stay."""
    shrinking = [group for group in groups if kept[group.name].numel() < group.size]
    if not shrinking:
        return None
    edit = merge([group.keep(kept[group.name]) for group in shrinking])
    if len(shrinking) == 1:
        return edit
    removed = sum(group.size - kept[group.name].numel() for group in shrinking)
    return replace(edit, label=f"{removed} units of {len(shrinking)} groups")


def _rows(matrix: Tensor, units: Tensor, size: int) -> Tensor:
    if units.numel() == size and torch.equal(units, torch.arange(size, device=units.device)):
        return matrix
    return pad_sequence([matrix[units == unit].flatten() for unit in range(size)], batch_first=True)


class _Queue:
    """Neurons in the order in which they go; each group's best ``min_channels`` are not among them."""

    def __init__(self, groups: Sequence[Group], scores: Mapping[str, Tensor], min_channels: int) -> None:
        orders = [scores[group.name].argsort(stable=True)[: max(group.size - min_channels, 0)] for group in groups]
        order = torch.cat([scores[group.name][one] for group, one in zip(groups, orders, strict=True)]).argsort(
            stable=True
        )
        self._sizes = {group.name: group.size for group in groups}
        self._owners = torch.cat([torch.full_like(one, k) for k, one in enumerate(orders)])[order]
        self._units = torch.cat(orders)[order]

    def __len__(self) -> int:
        return len(self._units)

    def kept(self, number: int) -> dict[str, Tensor]:
        """The units of each group that are left when the first ``number`` are gone."""
        owners, units = self._owners[:number], self._units[:number]
        kept = {}
        for position, (name, size) in enumerate(self._sizes.items()):
            stays = torch.ones(size, dtype=torch.bool).index_fill_(0, units[owners == position], False)
            kept[name] = torch.nonzero(stays).flatten()
        return kept


class _Positional(nn.Module):
    """Takes the last arguments by position and passes them on by name."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *arguments: object) -> object:
        split = len(arguments) - len(self.names)
        return self.network(*arguments[:split], **dict(zip(self.names, arguments[split:], strict=True)))

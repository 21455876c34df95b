"""Judging neurons and choosing which go: pure functions on groups, scores and counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_compress.errors import CompressionError
from lightning_compress.measure import measure
from lightning_compress.plan import KeepIndices, named_tensors
from lightning_compress.pruning.evidence import Criterion, Evidence
from lightning_compress.surgery import Group, TracingInput, merge, private_copy

COUNTS = ("channels", "params", "macs")
"""What an amount of neurons can be counted in."""


@dataclass(frozen=True)
class Selection:
    """A cut that has been chosen.

    Attributes:
        edit: takes the neurons out; None where none go.
        reached: share that is gone after it, of what there was at first.
        removed: neurons that go, by group.
    """

    edit: KeepIndices | None
    reached: float
    removed: dict[str, int]


def weights_of_units(module: nn.Module, group: Group) -> Tensor:
    """The weights that make each unit of ``group``, in fp32, shape (units, weights of each)."""
    tensors = named_tensors(module)
    columns = []
    for part in group.coupled:
        layer, _, leaf = part.tensor.rpartition(".")
        weight = tensors[part.tensor].detach()
        if layer in group.producers and leaf == "weight" and weight.dim() > 1:
            columns.append(
                _rows(weight.float().movedim(part.dim, 0).flatten(1), part.units.to(weight.device), group.size)
            )
    return torch.cat(columns, dim=1)


def judge(criterion: Criterion, evidence: Evidence) -> Tensor:
    """One finite score for each neuron.

    Scores of single weights become the L2 norm over the neuron's weights, divided by the group's mean, so that groups of unlike scale
    can be compared. A criterion that scores neurons itself is taken at its word.

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
            f"The criterion gave scores of shape {tuple(scores.shape)} for {evidence.name!r}; expected ({units},) or the weight's."
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
        self._skeleton = private_copy(module).to("meta")
        self._tracing = tracing.map(lambda tensor: tensor.to("meta"))

    def after(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> int:
        """The count once only ``kept`` units of each group are left."""
        if self._of == "channels":
            return sum(kept[group.name].numel() for group in groups)
        edit = edit_for(groups, kept)
        network = copy.deepcopy(self._skeleton)
        if edit is not None:
            edit.apply(network)
        if self._of == "params":
            return sum(parameter.numel() for parameter in network.parameters())
        return macs(network, self._tracing)


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
        CompressionError: even the largest possible cut stays short of the target by more than the next neuron would bring.
    """
    queue = _queue(groups, scores, min_channels)
    sizes = {group.name: group.size for group in groups}

    def gone(number: int) -> float:
        return 1 - count(_kept(groups, queue[:number])) / base

    low, high = 0, len(queue)
    if gone(high) < target:
        closest = 1 - count({g.name: torch.arange(min(min_channels, g.size)) for g in groups}) / base
        narrow = min(groups, key=lambda group: group.size)
        raise CompressionError(
            f"{target:.1%} cannot be taken away: with {min_channels} left in each layer at most {closest:.1%} is gone; "
            f"{narrow.name!r} has {sizes[narrow.name]}. Ask for less, lower min_channels, or exclude fewer layers."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gone(middle) < target else (low, middle)
    best = min((low, high), key=lambda number: abs(gone(number) - target))
    kept = _kept(groups, queue[:best])
    removed = {name: size - kept[name].numel() for name, size in sizes.items() if kept[name].numel() < size}
    return Selection(edit_for(groups, kept), gone(best), removed)


def edit_for(groups: Sequence[Group], kept: Mapping[str, Tensor]) -> KeepIndices | None:
    """One edit that leaves ``kept`` units of each group; None where all stay."""
    edits = [group.keep(kept[group.name]) for group in groups if kept[group.name].numel() < group.size]
    return merge(edits) if edits else None


def _rows(matrix: Tensor, units: Tensor, size: int) -> Tensor:
    if units.numel() == size and torch.equal(units, torch.arange(size, device=units.device)):
        return matrix
    return pad_sequence([matrix[units == unit].flatten() for unit in range(size)], batch_first=True)


def _queue(groups: Sequence[Group], scores: Mapping[str, Tensor], min_channels: int) -> list[tuple[str, int]]:
    """Neurons in the order in which they go; each group's best ``min_channels`` are not among them."""
    candidates = []
    for group in groups:
        order = scores[group.name].argsort(stable=True)[: max(group.size - min_channels, 0)]
        candidates += [(float(scores[group.name][unit]), group.name, int(unit)) for unit in order]
    candidates.sort(key=lambda candidate: candidate[0])
    return [(name, unit) for _, name, unit in candidates]


def _kept(groups: Sequence[Group], gone: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
    stays = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    for name, unit in gone:
        stays[name][unit] = False
    return {name: torch.nonzero(mask).flatten() for name, mask in stays.items()}


class _Positional(nn.Module):
    """Takes the last arguments by position and passes them on by name."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *arguments: object) -> object:
        split = len(arguments) - len(self.names)
        return self.network(*arguments[:split], **dict(zip(self.names, arguments[split:], strict=True)))

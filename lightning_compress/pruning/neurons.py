"""Judging neurons and choosing which go: pure functions on groups, scores and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from heapq import heapify, heappop, heappush
from math import gcd, isfinite, prod
from operator import truediv
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_compress.errors import CompressionError
from lightning_compress.measure import measure
from lightning_compress.plan import KeepIndices
from lightning_compress.plan.edits import first_names, named_tensors
from lightning_compress.pruning.evidence import Criterion, Evidence, relative
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import Group, TracingInput, evaluation_mode, merge, private_copy
from lightning_compress.surgery.compensation import write_
from lightning_compress.surgery.ports import CONVOLUTIONS
from lightning_compress.surgery.verification import evaluate

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


def weights_of_units(module: nn.Module, group: Group, values: Mapping[str, Tensor] | None = None) -> Tensor:
    """The weights that make each unit of ``group``, in fp32, shape (units, weights of each).

    Args:
        module: the network.
        group: the units.
        values: parameter -> tensor of its shape to take in the weights' place (gradients and the like).
    """
    tensors = values if values is not None else named_tensors(module)
    units = {(part.tensor, part.dim): part.units for part in group.coupled}
    columns = []
    for name, dim in (row for rows in group.rows.values() for row in rows):  # a tied weight once for each layer
        rows = tensors[name].detach().float().movedim(dim, 0).flatten(1)
        columns.append(_rows(rows, units[name, dim].to(rows.device), group.size))
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
        scores = relative(scores.square().sum(dim=1).sqrt())
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


def compared_among_alike(
    module: nn.Module, groups: Sequence[Group], scores: Mapping[str, Tensor], widths: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Scores as ranks, in (0, 1), among all neurons of groups whose producers are of the same kinds and widths.

    ``widths`` are those at first, for what was alike before cuts of its own; what is missing is that of now.
    """
    classes: dict[tuple[object, ...], list[str]] = {}
    for group in groups:
        kinds = tuple(sorted({type(module.get_submodule(name)).__name__ for name in group.producers}))
        classes.setdefault((kinds, (widths or {}).get(group.name, group.size)), []).append(group.name)
    ranked: dict[str, Tensor] = {}
    for names in classes.values():
        together = torch.cat([scores[name] for name in names])
        order = together.argsort(stable=True)
        ranks = torch.empty_like(together).index_copy_(0, order, torch.arange(len(order)).to(together) + 0.5)
        shares = torch.split(ranks / len(order), [len(scores[name]) for name in names])
        ranked |= dict(zip(names, shares, strict=True))
    return {group.name: ranked[group.name] for group in groups}


@torch.no_grad()
def calibration_loss(
    module: nn.Module, edit: KeepIndices, values: Mapping[str, Tensor], losses: Sequence[Callable[[nn.Module], Tensor]]
) -> float:
    """The mean loss of a copy with these values, behind the edit; infinite where it is not finite or there is none."""
    copy = private_copy(module)
    write_(copy, values)
    edit.apply(copy)
    with evaluation_mode(copy), isolated_random_states():
        found = [float(loss(copy)) for loss in losses]
    mean = sum(found) / len(found) if found else float("inf")
    return mean if isfinite(mean) else float("inf")


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
        self._uses = {} if self._copy is None else _uses_of_weights(self._copy, tracing)
        whole = 0 if self._copy is None else macs(self._copy, tracing)
        self._by_layers = whole == sum(uses * prod(self._sizes[name]) for name, uses in self._uses.items())

    def after(self, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> int:
        """The count once only ``kept`` units of each group are left."""
        if self._of == "channels":
            return sum(kept[group.name].numel() for group in groups)
        edit = edit_for(groups, kept)
        if self._copy is not None and not self._by_layers:
            return self._macs(self._copy, edit)
        sizes = {name: list(shape) for name, shape in self._sizes.items()}
        for part in edit.slices if edit is not None else ():
            if part.tensor in sizes:
                sizes[part.tensor][part.dim] = part.kept.numel()
        if self._copy is None:
            return sum(prod(shape) for shape in sizes.values())
        return sum(uses * prod(sizes[name]) for name, uses in self._uses.items())

    def _macs(self, network: nn.Module, edit: KeepIndices | None) -> int:
        if edit is None:
            return macs(network, self._tracing)
        inverse = edit.apply(network)
        try:
            return macs(network, self._tracing)
        finally:
            inverse.apply(network)


def _uses_of_weights(network: nn.Module, tracing: TracingInput) -> dict[str, int]:
    """How often the traced call multiplies with each entry of a weight of a Linear or convolution."""
    names, uses = first_names(network), dict[str, int]()

    def look(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
        across = args[0].numel() // layer.in_channels if getattr(layer, "transposed", False) else None
        made = layer.weight.shape[0]
        name = names[id(layer.weight)]
        uses[name] = uses.get(name, 0) + (output.numel() // made if across is None else across)

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS))]
    handles = [layer.register_forward_hook(look) for layer in layers if isinstance(layer.weight, nn.Parameter)]
    try:
        evaluate(network, tracing)
    except Exception:  # counted operation by operation instead
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return uses


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
    round_to: int = 1,
    at_least: bool = False,
    balance: float = 0.0,
    widths: Mapping[str, int] | None = None,
) -> Selection:
    """The lowest-scored neurons whose removal comes nearest to ``target``, the share of ``base`` that is to be gone.

    Each group keeps at least ``min_channels``. Ties fall to the earlier neuron.

    Args:
        groups: of the network.
        scores: group -> importance of its neurons.
        count: how much there is once only these neurons are left.
        base: how much there was at first.
        target: share of ``base``.
        min_channels: neurons that a group keeps.
        round_to: what a group keeps is rounded up to a multiple of this, or to all that it has; counted in what a
            layer's width is counted in, so a head of 16 entries is a multiple of 8 already.
        at_least: meet the target with the smallest excess rather than from whichever side is nearer.
        balance: no group is left with a share of its width below this part of the mean share of all groups.
        widths: group -> number of neurons that its share is of; None and what is missing is that of now.

    Raises:
        CompressionError: even the largest possible cut stays short of the target.
    """
    queue = _Queue(groups, scores, min_channels, round_to, balance, widths or {})

    @cache
    def gone(number: int) -> float:
        return (base - count(queue.kept(number))) / base

    low, high = 0, len(queue)
    if gone(high) < target:
        narrow = min(groups, key=lambda group: group.size, default=None)
        narrowest = "" if narrow is None else f"; the narrowest, {narrow.name!r}, has {narrow.size}"
        raise CompressionError(
            f"{target:.1%} cannot be taken away: with {min_channels} left in each layer at most {gone(high):.1%} is "
            f"gone{narrowest}. Ask for less, lower min_channels, or exclude fewer layers."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gone(middle) < target else (low, middle)
    best = min((low, high), key=lambda number: abs(gone(number) - target))
    best = high if at_least and gone(low) < target else best
    kept = queue.kept(best)
    removed = {group.name: group.size - kept[group.name].numel() for group in groups}
    removed = {name: number for name, number in removed.items() if number}
    return Selection(edit_for(groups, kept), gone(best), removed, kept)


def aligned(group: Group, round_to: int) -> int:
    """Of how many units of ``group`` the tensors' dimensions are a multiple of ``round_to``.

    >>> from lightning_compress.surgery import Coupled
    >>> heads = Coupled("fused.weight", 0, torch.arange(4).repeat_interleave(6))
    >>> aligned(Group("fused", 4, ("fused",), (), (heads,), ()), 8)
    4
    """
    width = min(int((part.units >= 0).sum()) // group.size for part in group.coupled)
    return round_to // gcd(round_to, max(1, width))


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


def _balanced(
    rising: Sequence[Sequence[float]], sizes: Sequence[int], widths: Sequence[int], balance: float
) -> list[int]:
    """The groups in the order in which they give a neuron: the lowest score first, as far as ``balance`` permits.

    The mean share only falls, so a group that may not give now waits until it has fallen far enough; where all have to
    wait, the one that would be left with most gives.
    """
    left, mean = list(sizes), fmean(map(truediv, sizes, widths)) if sizes else 0.0
    ready = [(scores[0], group) for group, scores in enumerate(rising) if scores]
    waiting: list[tuple[float, float, int]] = []
    heapify(ready)
    owners: list[int] = []
    while ready or waiting:
        while waiting and -waiting[0][0] >= balance * mean:
            heappush(ready, heappop(waiting)[1:])
        free = bool(ready)
        score, group = heappop(ready) if free else heappop(waiting)[1:]
        share = (left[group] - 1) / widths[group]
        if free and share < balance * mean:
            heappush(waiting, (-share, score, group))
            continue
        owners.append(group)
        left[group] -= 1
        mean -= 1 / (widths[group] * len(widths))
        if (given := sizes[group] - left[group]) < len(rising[group]):
            heappush(ready, (rising[group][given], group))
    return owners


class _Queue:
    """Neurons in the order in which they go; each group's best ``min_channels`` are not among them."""

    def __init__(
        self,
        groups: Sequence[Group],
        scores: Mapping[str, Tensor],
        min_channels: int,
        round_to: int,
        balance: float,
        widths: Mapping[str, int],
    ) -> None:
        self._multiples = [aligned(group, round_to) for group in groups]
        orders = [scores[group.name].argsort(stable=True)[: max(group.size - min_channels, 0)] for group in groups]
        rising = [scores[group.name][one].tolist() for group, one in zip(groups, orders, strict=True)]
        self._sizes = {group.name: group.size for group in groups}
        first = [widths.get(group.name, group.size) for group in groups]
        owners = _balanced(rising, [group.size for group in groups], first, balance)
        self._owners = torch.tensor(owners, dtype=torch.long)
        self._units = torch.empty_like(self._owners)
        for number, order in enumerate(orders):
            self._units[self._owners == number] = order

    def __len__(self) -> int:
        return len(self._units)

    def kept(self, number: int) -> dict[str, Tensor]:
        """The units of each group that are left when the first ``number`` are gone."""
        owners, units = self._owners[:number], self._units[:number]
        kept = {}
        for position, (name, size) in enumerate(self._sizes.items()):
            gone = units[owners == position]
            surplus = -(size - len(gone)) % self._multiples[position]
            gone = gone[: max(0, len(gone) - surplus)]  # in the order in which they go
            stays = torch.ones(size, dtype=torch.bool).index_fill_(0, gone, False)
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

"""What each layer's loss of weights costs, the others left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import Criterion, Evidence, needs_of
from lightning_compress.pruning.threshold import keep_top
from lightning_compress.pruning.weights import judge_weights
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery import evaluation_mode, find_weights, private_copy
from lightning_compress.surgery.tracing import call_with_batch, tensors_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Sensitivity:
    """Cost of pruning each weight by itself.

    Attributes:
        costs: parameter -> share of zeros -> cost, 0 where nothing changes.
        sizes: parameter -> number of entries.

    >>> print(Sensitivity({"fc.weight": {0.5: 0.25}}, {"fc.weight": 8}).to_state())
    {'fc.weight': [8, [[0.5, 0.25]]]}
    """

    costs: Mapping[str, Mapping[float, float]]
    sizes: Mapping[str, int]

    def __rich__(self) -> Table:
        """One row for each weight, the most sensitive (by its largest share) first."""
        shares = sorted({share for own in self.costs.values() for share in own})
        table = Table("weight", "entries", *(f"{share:.0%}" for share in shares), title="Cost of zeros in one weight")
        for name in sorted(self.costs, key=lambda name: -self.costs[name][shares[-1]]):
            table.add_row(name, f"{self.sizes[name]:,}", *(f"{self.costs[name][share]:.4g}" for share in shares))
        return table

    def plot(self, path: str | Path | None = None) -> Figure:
        """A curve for each weight over the share of zeros; written to ``path`` if given."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, own in self.costs.items():
            points = [(0.0, 0.0), *sorted(own.items())]
            axes.plot([100 * share for share, _ in points], [cost for _, cost in points], marker="o", label=name)
        axes.set(xlabel="zeros, % of the weight", ylabel="cost", yscale="symlog")
        axes.legend(fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    def to_state(self) -> dict[str, Any]:
        """Primitives."""
        return {name: [self.sizes[name], [list(point) for point in own.items()]] for name, own in self.costs.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Sensitivity:
        """What :meth:`to_state` gave."""
        costs = {name: dict(points) for name, (_, points) in state.items()}
        return cls(costs, {name: size for name, (size, _) in state.items()})


@torch.no_grad()
def sensitivity(
    module: nn.Module,
    data: Iterable[Any] = (),
    shares: Sequence[float] = SHARES,
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
    losses: Sequence[Callable[[nn.Module], Tensor]] | None = None,
    criterion: str | Criterion = "magnitude",
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Prune one weight at a time on a copy of the network; the module itself is left alone.

    Args:
        module: the network.
        data: batches of what ``forward`` takes.
        shares: of zeros to try, each in (0, 1).
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.
        losses: scalars of the network whose increase is the cost, in the place of ``data``; None: the mean squared
            change of the outputs, relative to their mean square.
        criterion: which entries go; one that looks at the weights alone.
        targets: patterns for names of layers or parameters.
        exclude: patterns of what to leave out.

    Raises:
        CompressionError: no data, shares out of range, a criterion that needs data, costs that are not finite.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = sensitivity(net, [torch.rand(16, 4)], shares=(0.1, 0.9))
    >>> found.sizes, found.costs["0.weight"][0.1] < found.costs["0.weight"][0.9]
    ({'0.weight': 32, '2.weight': 16}, True)
    """
    judge: Criterion = resolve(criterion, "lightning_compress.pruning.criteria")
    if needs_of(judge):
        raise CompressionError(f"sensitivity(criterion={criterion!r}): it needs data of the training; use 'magnitude'.")
    if not shares or not all(0 < share < 1 for share in shares):
        raise CompressionError(f"sensitivity(shares={tuple(shares)}): give some in (0, 1), such as (0.5, 0.9).")
    with isolated_random_states():
        copy = private_copy(module)
        with evaluation_mode(copy):
            cost = _cost_of(copy, data, forward, losses)
            weights = find_weights(copy, targets, exclude)
            costs = {name: _curve(name, weight, judge, sorted(shares), cost) for name, weight in weights.items()}
    return Sensitivity(costs, {name: weight.numel() for name, weight in weights.items()})


def _curve(
    name: str, weight: nn.Parameter, judge: Criterion, shares: Sequence[float], cost: Callable[[], float]
) -> dict[float, float]:
    before = weight.detach().clone()
    scores = judge_weights(judge, Evidence(name, before.float()))
    curve = {}
    for share in shares:
        weight.copy_(before * keep_top(scores, round(share * before.numel())))
        curve[share] = cost()
        if not abs(curve[share]) < float("inf"):
            raise CompressionError(f"The cost of {name!r} is not finite. Look for NaN or infinite values in the data.")
    weight.copy_(before)
    return curve


def _cost_of(
    copy: nn.Module,
    data: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None,
    losses: Sequence[Callable[[nn.Module], Tensor]] | None,
) -> Callable[[], float]:
    if losses:
        base = _mean_loss(copy, losses)
        return lambda: max(0.0, _mean_loss(copy, losses) - base)
    batches, run = list(data), forward or call_with_batch
    if not batches:
        raise CompressionError("There is no data to measure sensitivity on: data= is empty.")
    outputs = partial(_outputs, copy, batches, run)
    reference = outputs()
    scale = max(sum(float(one.square().sum()) for one in reference), 1e-30)
    return lambda: sum(float((a - b).square().sum()) for a, b in zip(outputs(), reference, strict=True)) / scale


def _outputs(copy: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], object]) -> list[Tensor]:
    return [value.float().clone() for batch in batches for value in tensors_in(run(copy, batch))]


def _mean_loss(copy: nn.Module, losses: Sequence[Callable[[nn.Module], Tensor]]) -> float:
    return sum(float(loss(copy)) for loss in losses) / len(losses)

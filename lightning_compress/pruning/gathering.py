"""Everything that a criterion needs to know, gathered while the network trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from lightning_compress.plan import Edit
from lightning_compress.pruning.evidence import GRADIENTS, INPUTS, OUTPUTS
from lightning_compress.pruning.gradients import GradientSums
from lightning_compress.surgery import InputStatistics, StatisticsCollector, gather

SUMS = {
    "zero_share": ("zeros",),
    "mean": ("total",),
    "variance": ("total", "squares"),
    "rank": ("ranks",),
    "input_norm": ("squares",),
    "moments": (),
}
"""Evidence -> which sums over a layer's inputs it comes from."""
STRIDES = {"rank": 64, "moments": 16}
"""Of how many training batches one is looked at, where that costs more than a few passes over the activations."""
STRIDE = 4
"""Likewise for all other statistics of activations. Gradients are summed at every step."""
FIRST = 4
"""Batches after a cut that are looked at whatever the stride, for cuts that follow closely."""


def sums_for(needs: Collection[str]) -> tuple[str, ...]:
    """Which sums have to be counted for the evidence ``needs``.

    >>> sums_for({"variance"})
    ('squares', 'total')
    """
    return tuple(sorted({one for need in needs for one in SUMS.get(need, ())}))


class Gathering:
    """What the training passes tell of some layers' inputs and some parameters' gradients; a follower of the edits.

    Of the activations of the first few batches and then of every :attr:`stride`-th, of the gradients of every step.

    Args:
        module: the network.
        needs: fields of :class:`~lightning_compress.pruning.Evidence`.
        layers: whose inputs are observed, if ``needs`` asks for statistics of activations.
        parameters: whose gradients are summed, if ``needs`` asks for gradients.

    Attributes:
        batches: that have been looked at since the last :meth:`reset`.
        since: time of that in epochs.
    """

    def __init__(
        self, module: nn.Module, needs: Collection[str], layers: Collection[str], parameters: Collection[str]
    ) -> None:
        activations = set(needs) & (OUTPUTS | INPUTS)
        self.collector: StatisticsCollector | None = None
        self.gradients: GradientSums | None = None
        if activations:
            moments = "moments" in activations
            self.collector = StatisticsCollector(module, layers, second_moments=moments, sums=sums_for(activations))
        if set(needs) & GRADIENTS:
            self.gradients = GradientSums(module, parameters, needs)
        self.stride = max((STRIDES.get(need, STRIDE) for need in activations), default=1)
        self.batches, self.since = 0, 0.0

    @property
    def steps(self) -> int:
        """Batches, or optimizer steps, since the last :meth:`reset` of which everything that is needed is known."""
        return self.batches if self.gradients is None else min(self.batches, self.gradients.steps)

    def attach(self) -> None:
        """Begin to observe."""
        if self.collector is not None:
            self.collector.attach()

    def detach(self) -> None:
        """Observe no more; what has been gathered stays."""
        if self.collector is not None:
            self.collector.detach()

    def begin_batch(self, index: int) -> None:
        """Batch ``index`` of an epoch is about to be trained on: look at it, or not."""
        looked_at = self.batches < FIRST or index % self.stride == 0
        self.batches += looked_at
        if self.collector is not None:
            self.collector.enabled = looked_at

    def pause(self) -> None:
        """Look at nothing until the next training batch."""
        if self.collector is not None:
            self.collector.enabled = False

    def before_step(self, *, check: bool = False) -> None:
        """The optimizer is about to step."""
        if self.gradients is not None:
            self.gradients.add(check=check)

    def statistics(self) -> Mapping[str, InputStatistics]:
        """Of all processes together; every one of them has to call it."""
        return {} if self.collector is None else self.collector.all_reduce()

    def reset(self, time: float) -> None:
        """Begin anew after a cut."""
        self.batches, self.since = 0, time
        for part in (self.collector, self.gradients):
            if part is not None:
                part.reset()

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Shrink with the network."""
        parts = [part.follow(edit) for part in (self.collector, self.gradients) if part is not None]

        def back() -> None:
            for one in parts:
                one()

        return back

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors."""
        return {
            "batches": self.batches,
            "since": self.since,
            "collector": None if self.collector is None else self.collector.state_dict(),
            "gradients": None if self.gradients is None else self.gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.batches, self.since = state["batches"], state["since"]
        if self.collector is not None and state["collector"] is not None:
            self.collector.load_state_dict(state["collector"])
        if self.gradients is not None and state["gradients"] is not None:
            self.gradients.load_state_dict(state["gradients"])


def observed_in(state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The layers and the parameters that a :meth:`Gathering.state_dict` tells of.

    >>> observed_in({"collector": {"fc": {}}, "gradients": None})
    (['fc'], [])
    """
    sums = {} if state["gradients"] is None else state["gradients"]["sums"]
    return list(state["collector"] or ()), list(next(iter(sums.values()), ()))


def gather_from(
    module: nn.Module,
    data: Iterable[Any],
    needs: Collection[str],
    layers: Collection[str],
    forward: Callable[[nn.Module, Any], object],
) -> Mapping[str, InputStatistics]:
    """Statistics of activations in a pass of its own over ``data``; nothing where ``needs`` asks for none."""
    activations = set(needs) & (OUTPUTS | INPUTS)
    if not activations:
        return {}
    moments = "moments" in activations
    return gather(module, data, layers, forward=forward, second_moments=moments, sums=sums_for(activations))


def norm_of_inputs(layer: nn.Module, statistics: InputStatistics) -> Tensor:
    """Root mean square of the input that each weight of a Linear or convolution is multiplied with, as its weight.

    >>> import torch
    >>> own = InputStatistics.empty(nn.Linear(2, 3))
    >>> own.add(nn.Linear(2, 3), torch.tensor([[3.0, 4.0]]))
    >>> norm_of_inputs(nn.Linear(2, 3), own)[0].tolist()
    [3.0, 4.0]
    """
    weight = cast(Tensor, layer.weight)
    norms = statistics.mean_square.sqrt().float().to(weight.device)
    groups = int(getattr(layer, "groups", 1))
    beyond = [1] * (weight.dim() - 2)
    if getattr(layer, "transposed", False):
        return norms.view(-1, 1, *beyond).expand(weight.shape)
    rows = norms.view(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return rows.view(*rows.shape, *beyond).expand(weight.shape)

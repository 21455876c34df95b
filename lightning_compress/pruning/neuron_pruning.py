"""Neurons taken out for real, in mid-fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.pruning.evidence import Criterion, Evidence, needs_of
from lightning_compress.pruning.neurons import COUNTS, Count, Selection, judge, select, weights_of_units
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery import (
    Groups,
    InputStatistics,
    StatisticsCollector,
    find_groups,
    gather,
    group_zero_share,
)
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.surgery.tracing import call_with_batch
from lightning_compress.training import GradualCallback, Recovery, Schedule
from lightning_compress.training.schedule import Shape

LEAST_BATCHES = 50
"""Training batches that statistics rest on at least; or one epoch, or the time between two cuts, if that is less."""


class NeuronPruning(GradualCallback):
    """Takes neurons of Linear layers and channels of convolutions out of the network, in cuts, while it trains.

    The network really shrinks: parameters, buffers and optimizer state are cut along, DDP is wrapped anew, and every
    checkpoint carries the Plan that gives a fresh module the same shape. A cut that is not exactly the same as zeroing
    its neurons is refused before anything is touched.

    Args:
        amount: share to take away, in [0, 1).
        of: what the share is counted in: "channels", "params" or "macs" of the network as it was at the first cut. The
            nearest reachable number counts as met.
        criterion: name of a function in ``pruning/criteria``, or any callable.
        schedule: name of a shape, a callable or a :class:`~lightning_compress.training.Schedule`.
        recover: a :class:`~lightning_compress.training.Recovery`: the next cut waits until the metric is back.
        data: batches for a criterion that needs activations (inputs, or tuples that begin with them), read anew at each
            cut; None gathers them from the training passes, for free.
        exclude: layers to leave alone, or modules with all their layers.
        min_channels: neurons that each layer keeps at least.
        max_step: largest share of what is left that one cut takes; None is 20 %.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; an amount that cannot be reached, at the
            start of the fit.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[NeuronPruning(0.5, of="macs")], logger=False, enable_checkpointing=False)
    """

    order = 10
    edits_shape = True

    def __init__(
        self,
        amount: float,
        *,
        of: str = "channels",
        criterion: str | Criterion = "magnitude",
        schedule: str | Shape | Schedule = "iterative",
        recover: Recovery | Mapping[str, Any] | None = None,
        data: Iterable[Any] | None = None,
        exclude: Sequence[str] = (),
        min_channels: int = 1,
        max_step: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(amount, schedule=schedule, recover=recover, max_step=max_step, name=name)
        if of not in COUNTS:
            raise CompressionError(f"NeuronPruning(of={of!r}). {did_you_mean(of, COUNTS)}")
        if min_channels < 1:
            raise CompressionError(f"NeuronPruning(min_channels={min_channels}): a layer keeps at least one neuron.")
        if isinstance(data, Iterator):
            raise CompressionError("NeuronPruning(data=...): every cut reads it anew; give a loader or a list.")
        refuse_text(exclude, "exclude")
        self.of = of
        self.min_channels = min_channels
        self._criterion: Criterion = resolve(criterion, "lightning_compress.pruning.criteria")
        self._data = data
        self._exclude = tuple(exclude)
        self._collector: StatisticsCollector | None = None

    def start_over(self) -> None:
        """Forget the reference count and the statistics too."""
        super().start_over()
        self._base: int | None = None
        self._collected: dict[str, Any] | None = None
        self._left_alone: tuple[str, ...] = ()
        self._gathered, self._since = 0, 0.0

    @property
    def quantity(self) -> str:
        """What is counted."""
        return f"{self.of} removed"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that the amount can be reached; begin to gather what the criterion needs."""
        super().on_train_start(trainer, pl_module)
        groups = self._groups()
        if self._base is None:
            everything = {group.name: torch.arange(group.size) for group in groups}
            self._base = self._count().after(groups, everything)
            self._choose(groups, {group.name: torch.zeros(group.size) for group in groups}, self.final)
            for layer, reason in groups.skipped.items():
                self.session.write("decision", f"{self.state_key}: {layer} is left alone: {reason}")
        if needs_of(self._criterion) and self._data is None:
            self._collect(groups)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches that the statistics rest on."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._gathered += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Statistics are of training data only."""
        if self._collector is not None:
            self._collector.enabled = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on gathering."""
        super().on_validation_end(trainer, pl_module)
        if self._collector is not None:
            self._collector.enabled = True

    @property
    def ready(self) -> bool:
        """Whether what the criterion needs has been gathered over enough batches since the last cut."""
        trainer = self.session.trainer
        if self._collector is None or trainer is None:
            return True
        between = min((two.time - one.time for one, two in pairwise(self._targets)), default=float("inf"))
        late = self.session.time - self._since >= between - 1e-9
        return self._gathered > 0 and (late or self._gathered >= min(LEAST_BATCHES, trainer.num_training_batches))

    def release(self) -> None:
        """Take the hooks off the layers."""
        if self._collector is not None:
            self._collector.detach()
            self._collected = self._collector.state_dict()
            self.session.record.followers.remove(self._collector)
            self._collector = None
        super().release()

    def cut(self, target: float) -> float:
        """Take out the neurons of least importance; process 0 decides for all."""
        groups, selection = self._selection(target)
        while refused := self._refused_by_proof(groups, selection):
            self._left_alone += refused
            text = f"left alone from here on, since taking their neurons out is not exact: {', '.join(refused)}"
            self.session.write("decision", f"{self.state_key}: {text}")
            groups, selection = self._selection(target)
        if selection.edit is not None:
            removed = ", ".join(f"{number} of {name}" for name, number in selection.removed.items())
            text = f"took out {sum(selection.removed.values())} neurons: {removed}"
            self.session.apply(selection.edit)
            self.session.write("decision", text)
        if self._collector is not None:
            self._collector.reset()
            self._gathered, self._since = 0, self.session.time
        return selection.reached

    def get_compression_state(self) -> dict[str, Any]:
        """The reference count and the statistics too."""
        collected = self._collected if self._collector is None else self._collector.state_dict()
        own: dict[str, Any] = {"base": self._base, "statistics": collected, "left_alone": self._left_alone}
        own.update(gathered=self._gathered, since=self._since)
        return {**super().get_compression_state(), **own}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The reference count and the statistics too."""
        super().set_compression_state(state)
        self._base, self._gathered, self._since = state["base"], state["gathered"], state["since"]
        self._collected, self._left_alone = state["statistics"], tuple(state["left_alone"])
        if self._collector is not None and self._collected is not None:
            self._collector.load_state_dict(self._collected)

    def _selection(self, target: float) -> tuple[Groups, Selection]:
        groups = self._groups()
        statistics = self._statistics(groups)
        return groups, self.session.from_first(lambda: self._decide(groups, statistics, target))

    def _refused_by_proof(self, groups: Groups, selection: Selection) -> tuple[str, ...]:
        """Layers of the selection that cannot be cut by themselves; empty if the whole selection can be made.

        Raises:
            CompressionError: each can be cut by itself, but not all together.
        """
        if selection.edit is None:
            return ()
        try:
            self.session.prove(selection.edit)
        except CompressionError:
            refused = []
            for group in groups:
                kept = selection.kept[group.name]
                if kept.numel() < group.size:
                    try:
                        self.session.prove(group.keep(kept))
                    except CompressionError:
                        refused.append(group.name)
            if not refused:
                raise
            return tuple(refused)
        return ()

    # -- deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, groups: Groups, statistics: Mapping[str, InputStatistics], target: float) -> Selection:
        scores = {}
        with isolated_random_states():
            for group in groups:
                zeros = group_zero_share(group, statistics) if needs_of(self._criterion) else None
                evidence = Evidence(group.name, weights_of_units(self.session.module, group), zeros, of_neurons=True)
                scores[group.name] = judge(self._criterion, evidence)
        return self._choose(groups, scores, target)

    def _choose(self, groups: Groups, scores: Mapping[str, Tensor], target: float) -> Selection:
        assert self._base is not None
        count = self._count()
        return select(
            groups,
            scores,
            lambda kept: count.after(groups, kept),
            base=self._base,
            target=target,
            min_channels=self.min_channels,
        )

    def _groups(self) -> Groups:
        exclude = (*self._exclude, *self._left_alone)
        groups = find_groups(self.session.module, self.session.tracing, exclude=exclude)
        if not len(groups):
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in groups.skipped.items())
            raise CompressionError(
                f"{self.state_key} finds no neurons that can be taken out. {reasons or 'Everything is excluded.'}"
            )
        return groups

    def _count(self) -> Count:
        return Count(self.session.module, self.session.tracing, self.of)

    # -- statistics ---------------------------------------------------------------------------------------------------

    def _collect(self, groups: Groups) -> None:
        self._collector = StatisticsCollector(self.session.module, _consumers(groups))
        self._collector.attach()
        self.session.record.followers.append(self._collector)
        if self._collected is not None:
            self._collector.load_state_dict(self._collected)

    def _statistics(self, groups: Groups) -> Mapping[str, InputStatistics]:
        if not needs_of(self._criterion):
            return {}
        if self._collector is not None:
            return self._collector.all_reduce()
        module, where = self.session.module, self.session.tracing.module

        def run(root: nn.Module, batch: Any) -> object:
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            return call_with_batch(root.get_submodule(where), batch)

        assert self._data is not None
        return gather(module, self._data, _consumers(groups), forward=run)


def _consumers(groups: Groups) -> list[str]:
    return sorted({consumer for group in groups for consumer in group.consumers})

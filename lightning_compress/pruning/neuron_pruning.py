"""Neurons taken out for real, in mid-fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.measure import check_runtime
from lightning_compress.plan import KeepIndices
from lightning_compress.pruning.evidence import WEIGHTS_ONLY, Criterion
from lightning_compress.pruning.evidence_callback import EvidenceCallback
from lightning_compress.pruning.latency_target import UNIT, LatencyCount, learned_alignment
from lightning_compress.pruning.neuron_evidence import evidence_of_group, observed_layers, weight_names
from lightning_compress.pruning.neurons import (
    COUNTS,
    Count,
    Selection,
    calibration_loss,
    compared_among_alike,
    judge,
    select,
)
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import Groups, InputStatistics, find_groups
from lightning_compress.surgery.compensation import compensation, write_
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import Recovery, Schedule
from lightning_compress.training.schedule import Shape
from lightning_compress.values import is_number, is_whole

OPTIMIZER = ("carry", "reset")
"""What becomes of the optimizers' state in a cut."""


class NeuronPruning(EvidenceCallback):
    """Takes neurons of Linear layers, channels of convolutions, whole heads of attention and hidden units of recurrent
    layers out of the network, in cuts, while it trains.

    The network really shrinks: parameters, buffers and optimizer state are cut along, DDP is wrapped anew, and every
    checkpoint carries the Plan that gives a fresh module the same shape. A cut that is not exactly the same as zeroing
    its neurons is refused before anything is touched.

    Args:
        amount: share to take away, in [0, 1); or give ``speedup``.
        of: what the share is counted in: "channels", "params" or "macs" of the network as it was at the first cut. The
            nearest reachable number counts as met.
        speedup: how many times as fast as before the first cut the network shall be, above 1: measured, side by side
            with the uncut network; the smallest excess that the widths allow counts as met.
        runtime: where the network is to run, and is measured: "eager" or "onnxruntime" (fp32). None is "eager" for a
            ``speedup``; with an amount nothing is measured then.
        batch_size: samples at a time when it is measured.
        criterion: name of a function in ``pruning/criteria``, or any callable.
        schedule: name of a shape, a callable or a :class:`~lightning_compress.training.Schedule`.
        recover: a :class:`~lightning_compress.training.Recovery`: the next cut waits until the metric is back.
        data: batches for a criterion that needs activations (inputs, or tuples that begin with them), read anew at each
            cut; None gathers them from the training passes, for free.
        exclude: layers to leave alone, or modules with all their layers.
        min_channels: neurons that each layer keeps at least.
        balance: no layer is left with a share of its width below this part of the mean share of all layers, in [0, 1]:
            0 compares neurons over the whole network and may leave a layer with next to nothing, which nothing behind
            it can make up for; 1 cuts all layers alike.
        round_to: what a layer keeps is rounded up to a multiple of this, in entries of its weight (a head of 16 is one
            of 8). "auto" learns by a few measurements at the start of the fit which multiple the machine likes; where
            neither a ``speedup`` nor a ``runtime`` is given it rounds nothing: such a fit does not depend on a clock.
        compensate: refit what is left of the next layers' weights, and BatchNorm statistics, on ``data``, or without
            them on the batch at hand, wherever that lowers the loss there. None does so where ``data`` are given: one
            batch is little to fit weights to.
        isomorphic: compare neurons only with those of layers of the same kind and shape, in equal shares (Fang et al.,
            "Isomorphic Pruning for Vision Models", ECCV 2024).
        approximate: take neurons out, too, that a LayerNorm or a GroupNorm of one group averages over, which no cut
            can do exactly; the Journal names those norms.
        optimizer: "carry" cuts what the optimizers keep (moments, momenta) along with the parameters; "reset" lets them
            start anew with each cut, as one with a factored state (Adafactor) has to. Learning rates and their
            schedules go on in either case.
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
        amount: float | None = None,
        *,
        of: str = "channels",
        speedup: float | None = None,
        runtime: str | None = None,
        batch_size: int = 1,
        criterion: str | Criterion = "magnitude",
        schedule: str | Shape | Schedule = "iterative",
        recover: Recovery | Mapping[str, Any] | None = None,
        data: Iterable[Any] | None = None,
        exclude: Sequence[str] = (),
        min_channels: int = 1,
        balance: float = 0.5,
        round_to: int | str = "auto",
        compensate: bool | None = None,
        isomorphic: bool = False,
        approximate: bool = False,
        optimizer: str = "carry",
        max_step: float | None = None,
        name: str | None = None,
    ) -> None:
        self.round_to = round_to
        super().__init__(
            _share(amount, speedup),
            criterion=criterion,
            data=data,
            schedule=schedule,
            recover=recover,
            max_step=max_step,
            name=name,
        )
        if of not in COUNTS:
            raise CompressionError(f"NeuronPruning(of={of!r}). {did_you_mean(of, COUNTS)}")
        if optimizer not in OPTIMIZER:
            raise CompressionError(f"NeuronPruning(optimizer={optimizer!r}). {did_you_mean(optimizer, OPTIMIZER)}")
        if not is_whole(min_channels) or min_channels < 1:
            raise CompressionError(f"NeuronPruning(min_channels={min_channels}): a layer keeps at least one neuron.")
        if not is_number(balance) or not 0 <= balance <= 1:
            raise CompressionError(f"NeuronPruning(balance={balance}): from 0, freely, to 1, all layers alike.")
        if self.needs & WEIGHTS_ONLY:
            raise CompressionError(
                f"The criterion {criterion!r} judges single weights, not neurons: use it with WeightPruning."
            )
        refuse_text(exclude, "exclude")
        if not (round_to == "auto" or (is_whole(round_to) and round_to >= 1)):
            raise CompressionError(f'NeuronPruning(round_to={round_to!r}): a whole number from 1, or "auto".')
        if not is_whole(batch_size) or batch_size < 1:
            raise CompressionError(f"NeuronPruning(batch_size={batch_size}): at least one sample is timed.")
        check_runtime(runtime or "eager")
        self.of = of if speedup is None else "latency"
        self.runtime, self.batch_size = runtime or "eager", batch_size
        self._learns = round_to == "auto" and (speedup is not None or runtime is not None)
        self.compensate = data is not None if compensate is None else compensate
        self.isomorphic, self.approximate = isomorphic, approximate
        self.optimizer = optimizer
        self.min_channels, self.balance = min_channels, balance
        self._exclude = tuple(exclude or ())

    def start_over(self) -> None:
        """Forget the reference count too."""
        super().start_over()
        self._base: int | None = None
        self._multiple = self.round_to if isinstance(self.round_to, int) else 1
        self._left_alone: tuple[str, ...] = ()
        self._widths: dict[str, int] = {}

    @property
    def quantity(self) -> str:
        """What is counted."""
        return f"{self.of} removed"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that the amount can be reached."""
        super().on_train_start(trainer, pl_module)
        groups = self._groups()
        if self._base is None:
            everything = {group.name: torch.arange(group.size) for group in groups}
            self._widths = {group.name: group.size for group in groups}
            self._base = UNIT if self.of == "latency" else self._count().after(groups, everything)
            if self._learns:
                self._multiple = self.session.from_first(lambda: self._learn(groups))
                self.session.write("decision", f"{self.state_key}: widths are rounded to {self._multiple}")
            self._choose(groups, {group.name: torch.zeros(group.size) for group in groups}, self.final)
            for group in groups:
                if group.norms:
                    text = f"taking neurons out of {group.name} is an approximation: {', '.join(group.norms)} average"
                    self.session.write("decision", f"{self.state_key}: {text} over them")
            for layer, reason in groups.skipped.items():
                self.session.write("decision", f"{self.state_key}: {layer} is left alone: {reason}")

    def observed(self) -> tuple[Collection[str], Collection[str]]:
        """The layers that the evidence is of, and the weights that make the neurons."""
        groups = self._groups()
        return observed_layers(groups, self.needs), weight_names(groups)

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
            self._compensate(selection.edit)
            if self.optimizer == "reset" and self.session.trainer is not None:
                self.session.set_optimizer_state([{} for _ in self.session.trainer.optimizers])
            self.session.apply(selection.edit)
            self.session.write("decision", text)
        self.forget_evidence()
        return selection.reached

    def get_compression_state(self) -> dict[str, Any]:
        """The reference count too."""
        return {**super().get_compression_state(), **self._own_state()}

    def _own_state(self) -> dict[str, Any]:
        return {"base": self._base, "left_alone": self._left_alone, "multiple": self._multiple, "widths": self._widths}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The reference count too."""
        super().set_compression_state(state)
        self._base, self._left_alone = state["base"], tuple(state["left_alone"])
        self._multiple, self._widths = state["multiple"], dict(state["widths"])

    def _selection(self, target: float) -> tuple[Groups, Selection]:
        groups = self._groups()
        if not len(groups):  # all are as narrow as they can be
            return groups, self.session.from_first(lambda: self._choose(groups, {}, target))
        statistics = self.input_statistics(observed_layers(groups, self.needs))
        gradients = self.gradient_evidence(weight_names(groups))
        return groups, self.session.from_first(lambda: self._decide(groups, statistics, gradients, target))

    def _refused_by_proof(self, groups: Groups, selection: Selection) -> tuple[str, ...]:
        """Layers of the selection that cannot be cut by themselves; empty if the whole selection can be made.

        Raises:
            CompressionError: each can be cut by itself, but not all together.
        """
        if selection.edit is None:
            return ()
        try:
            self.session.prove(selection.edit, _norms(groups))
        except CompressionError:
            refused = []
            for group in groups:
                kept = selection.kept[group.name]
                if kept.numel() < group.size:
                    try:
                        self.session.prove(group.keep(kept), group.norms)
                    except CompressionError:
                        refused.append(group.name)
            if not refused:
                raise
            return tuple(refused)
        return ()

    # -- deciding -----------------------------------------------------------------------------------------------------

    def _decide(
        self,
        groups: Groups,
        statistics: Mapping[str, InputStatistics],
        gradients: Mapping[str, Mapping[str, Tensor]],
        target: float,
    ) -> Selection:
        scores = {}
        with isolated_random_states():
            for group in groups:
                evidence = evidence_of_group(self.session.module, group, self.needs, statistics, gradients)
                scores[group.name] = judge(self._criterion, evidence)
        if self.isomorphic:
            scores = compared_among_alike(self.session.module, groups, scores, self._widths)
        return self._choose(groups, scores, target)

    def _choose(self, groups: Groups, scores: Mapping[str, Tensor], target: float) -> Selection:
        assert self._base is not None
        count, others = self._count(), self._other_channels(groups)
        return select(
            groups,
            scores,
            lambda kept: count.after(groups, kept) + others,
            base=self._base,
            target=target,
            min_channels=self.min_channels,
            round_to=self._multiple,
            at_least=self.of == "latency",
            balance=self.balance,
            widths=self._widths,
        )

    def _compensate(self, edit: KeepIndices) -> None:
        """Write what makes up for ``edit`` into the network, if that lowers the loss behind it."""
        if self.compensate:
            values, before, after = self.session.from_first(lambda: self._repaired(edit))
            if values:
                write_(self.session.module, values)
                text = f"compensated {len(values)} tensors: calibration loss {before:.4g} -> {after:.4g}"
                self.session.write("decision", f"{self.state_key}: {text}", before=before, after=after)

    def _repaired(self, edit: KeepIndices) -> tuple[dict[str, Tensor], float, float]:
        """What makes up for ``edit``, and the calibration loss without and with it; nothing if it does not help."""
        module = self.session.module
        given = [] if self._data is None else [self.losses()]
        for losses in (*given, [self._loss(self._batch)] if self._batch is not None else []):
            try:
                before = calibration_loss(module, edit, {}, losses)
                values = compensation(module, edit, losses)
                after = calibration_loss(module, edit, values, losses)
            except (
                Exception
            ) as error:  # data of inputs alone, which training_step cannot take; the batch at hand is left
                reason = str(error).partition(chr(10))[0]
                self.session.write("decision", f"{self.state_key}: nothing is compensated on these data: {reason}")
            else:
                return (values if after < before else {}), before, after
        return {}, 0.0, 0.0

    def _learn(self, groups: Groups) -> int:
        share = 1 - (1 - self.final) ** 0.5 if self.of in ("params", "macs") else self.final
        module, tracing = self.session.module, self.session.tracing
        return learned_alignment(module, tracing, groups, self.runtime, self.batch_size, share)

    def _other_channels(self, groups: Groups) -> int:
        """Of layers that could give some at first and are in no group now; params, macs and latency are of all layers.

        Those of which one is left, and those that are left alone since their cut was refused.
        """
        if self.of != "channels":
            return 0
        every = self._find(self._exclude) if self._left_alone else groups
        narrowest = sum(name in every.skipped for name in self._widths)
        return narrowest + sum(group.size for group in every) - sum(group.size for group in groups)

    def _groups(self) -> Groups:
        groups = self._find((*self._exclude, *self._left_alone))
        if not len(groups) and (self._base is None or self._left_alone):
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in groups.skipped.items())
            raise CompressionError(
                f"{self.state_key} finds no neurons that can be taken out. {reasons or 'Everything is excluded.'}"
            )
        return groups

    def _find(self, exclude: Sequence[str]) -> Groups:
        return find_groups(self.session.module, self.session.tracing, exclude=exclude, approximate=self.approximate)

    def _count(self) -> Count | LatencyCount:
        if self.of == "latency":
            return LatencyCount(self.session.module, self.session.tracing, self.runtime, self.batch_size)
        return Count(self.session.module, self.session.tracing, self.of)


def _share(amount: float | None, speedup: float | None) -> float:
    """The share of channels, or of time, that is to be gone."""
    if (amount is None) == (speedup is None):
        raise CompressionError("NeuronPruning takes either an amount, such as 0.5, or a speedup, such as 2.0.")
    if speedup is None:
        assert amount is not None
        return amount
    if not is_number(speedup) or not 1 < speedup < inf:
        raise CompressionError(f"NeuronPruning(speedup={speedup}): 2.0 is twice as fast; it has to be above 1.")
    return 1 - 1 / speedup


def _norms(groups: Groups) -> tuple[str, ...]:
    return tuple({norm for group in groups for norm in group.norms})

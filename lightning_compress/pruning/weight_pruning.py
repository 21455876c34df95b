"""Single weights to exact zeros."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import isclose
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.evidence import INPUTS, NEURONS_ONLY, Criterion, Evidence, needs_of, repair_of
from lightning_compress.pruning.evidence_callback import EvidenceCallback
from lightning_compress.pruning.masks import Masks
from lightning_compress.pruning.overrides import check_overrides, split_overrides, with_overrides
from lightning_compress.pruning.patterns import Pattern, find_pattern
from lightning_compress.pruning.regrowth import Regrowth, exchange, forget_moments
from lightning_compress.pruning.rewinding import RewindPoint, check_rewind, rewind_time
from lightning_compress.pruning.sensitivity import Sensitivity, sensitivity
from lightning_compress.pruning.weight_evidence import check_layers, evidence_of_weight, layers_of
from lightning_compress.pruning.weights import Allocation, choose_weights, scores_of
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery import InputStatistics
from lightning_compress.surgery.targets import find_weights, refuse_text
from lightning_compress.training import Recovery, Schedule
from lightning_compress.training.schedule import Shape


class WeightPruning(EvidenceCallback):
    """Takes single weights to exact zeros in cuts, trains on between them, and keeps every zero.

    The parameters stay plain and the keys of the ``state_dict`` the module's own; masks are applied after each
    optimizer step, before each validation and in each checkpoint, so that a metric in a file's name is that of the
    weights in the file, under EMA too. What has been pruned stays pruned, unless ``regrow`` says otherwise.

    Args:
        sparsity: share of the targeted entries that end as zeros, in [0, 1); exact. Omitted where ``pattern`` fixes it,
            or where ``keep_zeros`` is all that is wanted.
        criterion: name of a function in ``pruning/criteria`` that judges weights, or any callable. What it needs to
            know is gathered from the training passes.
        allocation: "global" ranks all targeted weights together, "uniform" takes the same share everywhere; "erk",
            "lamp", "sensitivity" (a scan of each layer at the first cut); a callable; or a mapping from name patterns
            to shares of zeros, what allocates the rest under "default".
        schedule: name of a shape, a callable or a :class:`~lightning_compress.training.Schedule`.
        pattern: which entries go only together: "2:4" and any n:m (n of each m consecutive inputs stay), "4x4" and any
            block, "rows", "columns", "kernels". The share is then the nearest that whole units reach.
        recover: a :class:`~lightning_compress.training.Recovery`: the next cut waits until the metric is back.
        rewind: after each cut weights, optimizer and learning rate go back to where they were: "init", an epoch (int)
            or a share of the fit (float). Lottery tickets.
        regrow: a :class:`~lightning_compress.pruning.Regrowth`, or "rigl", "set" (weights are exchanged all through the
            fit), "dense" (all come back in the end).
        data: batches for criteria that need activations or gradients at one moment, and for "sensitivity", read anew at
            each cut; None takes them from the training passes, for free.
        keep_zeros: entries that are zero when the fit starts stay so: training goes on with a pruned network, such as
            one from a ``.lcz`` file. ``sparsity`` then counts them too.
        targets: patterns for names of layers or parameters; None: weights of Linear, convolution, attention and
            recurrent layers.
        exclude: patterns of what to leave alone.
        max_step: largest share of what is left that one cut takes; None is 20 %.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a pattern that matches nothing, at the start
            of the fit.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[WeightPruning(0.9)], logger=False, enable_checkpointing=False)
    """

    order = 30
    _masks: Masks | None = None

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        criterion: str | Criterion = "magnitude",
        allocation: str | Allocation | Mapping[str, Any] = "global",
        schedule: str | Shape | Schedule = "cubic",
        pattern: str | Pattern | None = None,
        recover: Recovery | Mapping[str, Any] | None = None,
        rewind: str | float | None = None,
        regrow: Regrowth | str | Criterion | Mapping[str, Any] | None = None,
        data: Iterable[Any] | None = None,
        keep_zeros: bool = False,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        max_step: float | None = None,
        name: str | None = None,
    ) -> None:
        self._pattern = find_pattern(pattern)
        self._keep_zeros = keep_zeros
        super().__init__(
            _final(0.0 if keep_zeros and sparsity is None and pattern is None else sparsity, self._pattern),
            criterion=criterion,
            data=data,
            schedule=schedule,
            recover=recover,
            max_step=max_step,
            name=name,
        )
        rest, self._shares = split_overrides(allocation) if isinstance(allocation, Mapping) else (allocation, {})
        self._allocation: Callable[..., dict[str, int]] = resolve(rest, "lightning_compress.pruning.allocations")
        check_rewind(rewind)
        self._rewind = rewind
        self._regrow = None if regrow is None else Regrowth.of(regrow)
        if needs_of(self._criterion) & NEURONS_ONLY:
            raise CompressionError(
                f"The criterion {criterion!r} judges neurons, not single weights: use it with NeuronPruning."
            )
        if self._regrow is not None and self._pattern is not None and self._regrow.criterion is not None:
            raise CompressionError("regrow= exchanges single weights and would break pattern=. Use one of them.")
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        self._patterns = (targets, tuple(exclude or ()))
        self._handles: list[Any] = []

    @property
    def quantity(self) -> str:
        """What is counted."""
        return "sparsity"

    @property
    def masks(self) -> Masks:
        """The masks of the module that is, or was last, in a Trainer with this callback."""
        if self._masks is None:
            raise CompressionError(f"{self.state_key} has been in no Trainer yet.")
        return self._masks

    @property
    def needs(self) -> frozenset[str]:
        """Of the criterion, and of the one by which weights come back."""
        growth = None if self._regrow is None else self._regrow.criterion
        return needs_of(self._criterion) | (frozenset() if growth is None else needs_of(growth))

    def observed(self) -> tuple[Collection[str], Collection[str]]:
        """The layers of the targets, and the targets."""
        weights = find_weights(self.session.module, *self._patterns)
        return layers_of(weights), weights

    @property
    def curves(self) -> Sensitivity | None:
        """What the allocation "sensitivity" measured at the first cut; None before that, and for other allocations."""
        return self._curves

    def start_over(self) -> None:
        """Forget the masks too."""
        super().start_over()
        self._point: RewindPoint | None = None
        self._curves: Sensitivity | None = None
        self._exchanged: float | None = None
        self._released = False
        if self._masks is not None:
            self._masks.from_state({})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the masks follow the module's edits."""
        super().setup(trainer, pl_module, stage)
        if self._masks is None or self._masks.module is not pl_module:
            self._masks = Masks(pl_module)
        if self._masks not in self.session.record.followers:
            self.session.record.followers.append(self._masks)

    def release(self) -> None:
        """Take the hooks off the optimizers; the masks follow no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.session.record.followers.remove(self.masks)
        super().release()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the weights that are meant; apply the masks after every optimizer step from here on."""
        super().on_fit_start(trainer, pl_module)
        weights = find_weights(pl_module, *self._patterns)
        check_overrides({name: weight.numel() for name, weight in weights.items()}, self._shares, self.final)
        if self.needs & INPUTS:
            check_layers(pl_module, weights)
        for name, weight in weights.items():
            if self._pattern is not None:
                self._pattern.check(name, tuple(weight.shape))
        if self._rewind is not None and any(callback.edits_shape for callback in self.session.callbacks):
            raise CompressionError(
                f"{self.state_key}(rewind=...) goes back to weights of the former shape, which another callback "
                "changes. Prune neurons in a fit of their own."
            )
        if self._keep_zeros and not self.masks.zeros:
            self.masks.set({name: weight != 0 for name, weight in weights.items()})
            self._reached = self.masks.zeros_in(weights) / sum(weight.numel() for weight in weights.values())
        self._handles = [opt.register_step_post_hook(lambda *_: self.masks.apply_()) for opt in trainer.optimizers]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that there is something to rewind to before the first cut, and something sparse before the dense end."""
        super().on_train_start(trainer, pl_module)
        assert self._horizon is not None
        if not self._targets:
            return
        first, last = self._targets[0].time, self._targets[-1].time
        if self._rewind is not None and rewind_time(self._rewind, self._horizon) > first:
            raise CompressionError(
                f"{self.state_key}: the first cut is at epoch {first:g}, before epoch "
                f"{rewind_time(self._rewind, self._horizon):g} to which rewind={self._rewind!r} goes back. Give the "
                "Schedule a later start."
            )
        if self._regrow is not None and self._regrow.criterion is None:
            end = self._regrow.end_in_epochs(self._horizon)
            if end <= last:
                raise CompressionError(
                    f"{self.state_key}: all weights come back at epoch {end:g}, and the last cut is at epoch {last:g}. "
                    "Give the Schedule an earlier end, or the Regrowth a later one."
                )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Averaging callbacks may have put other weights in place: apply the masks before anything else."""
        self.masks.apply_()
        super().on_train_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is validated is what is saved: an average has its zeros too. After a fit a file speaks for itself."""
        if trainer.state.fn == "fit":
            self.masks.apply_()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The network that is left behind has its zeros."""
        super().on_train_end(trainer, pl_module)
        self.masks.apply_()

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights in the file have their zeros, whoever put them there."""
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                state = checkpoint[key]
                checkpoint[key] = {name: self.masks.masked(name, tensor) for name, tensor in state.items()}

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _act(self, trainer: L.Trainer) -> None:
        assert self._horizon is not None
        due = self._rewind is not None and self._point is None
        if due and self.session.time >= rewind_time(self._rewind, self._horizon) - 1e-9:
            self._point = RewindPoint.take(self.session, trainer)
        super()._act(trainer)
        if self._regrow is not None and self.masks.zeros and not self._released:
            self._exchange(trainer, self._regrow, self._horizon)

    def cut(self, target: float) -> float:
        """Mask the least important weights; process 0 decides for all."""
        reached = self._mask(target)
        trainer = self.session.trainer
        if self._point is not None and trainer is not None:
            self._point.restore(self.session, trainer)
            self.masks.apply_()
        self.forget_evidence()
        return reached

    def _mask(self, target: float) -> float:
        weights = find_weights(self.session.module, *self._patterns)
        total = sum(parameter.numel() for parameter in weights.values())
        drop = max(round(target * total), self.masks.zeros_in(weights))
        evidence = self._evidence(weights)
        keep, fitted = self.session.from_first(lambda: self._decide(weights, evidence, drop))
        with torch.no_grad():
            for name, value in fitted.items():
                weights[name].copy_(value)
        self.masks.set(keep)
        return self.masks.zeros_in(weights) / total

    def reassert(self) -> None:
        """Mask more where neurons that went took more zeros than weights with them."""
        if not self.masks.reshaped or self._released or not self._seen:
            return
        self.masks.reshaped = False
        before = self.masks.zeros
        self._reached = self._mask(self._goal)
        if self.masks.zeros > before:
            text = f"{self.state_key}: back to {self._reached:.2%} after an edit"
            self.session.write("decision", text, reached=self._reached)

    def _evidence(self, weights: Mapping[str, Parameter]) -> Callable[[str], Evidence]:
        """What is known of each weight; every process has to call it."""
        statistics: Mapping[str, InputStatistics] = {}
        if self.needs & INPUTS:
            statistics = self.input_statistics(layers_of(weights))
        gradients = self.gradient_evidence(list(weights))
        return partial(evidence_of_weight, self.session.module, weights, self.needs, statistics, gradients)

    def _decide(
        self, weights: Mapping[str, Parameter], evidence: Callable[[str], Evidence], drop: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The masks, and weights that are fitted anew."""
        alive = {name: self.masks.keep(name, weight) for name, weight in weights.items()}
        scores = scores_of(self._criterion, list(weights), evidence)
        keep = choose_weights(scores, alive, self._allocate(), drop, self._pattern)
        repair = repair_of(self._criterion)
        fitted = {} if repair is None else {name: repair(evidence(name), one) for name, one in keep.items()}
        return keep, fitted

    def _allocate(self) -> Allocation:
        allocation = self._allocation
        if "curves" in needs_of(allocation):
            if self._curves is None:
                targets, exclude = self._patterns
                losses = self.losses()
                with isolated_random_states():
                    self._curves = sensitivity(self.session.module, losses=losses, targets=targets, exclude=exclude)
            allocation = partial(allocation, curves=self._curves)
        return with_overrides(allocation, self._shares, self.final) if self._shares else allocation

    # -- growing ------------------------------------------------------------------------------------------------------

    def _exchange(self, trainer: L.Trainer, regrow: Regrowth, horizon: float) -> None:
        """Let weights come back if it is time."""
        time, end = self.session.time, regrow.end_in_epochs(horizon)
        if regrow.criterion is None:
            if time >= end - 1e-9 and self.session.unconfirmed is None:
                self._release(trainer)
            return
        self._exchanged = time if self._exchanged is None else self._exchanged
        if time > end + 1e-9 or time - self._exchanged < regrow.every - 1e-9 or not self._seen:
            return
        weights = find_weights(self.session.module, *self._patterns)
        evidence, share = self._evidence(weights), regrow.share_at(time, horizon)
        decided = self.session.from_first(lambda: self._exchanges(weights, evidence, regrow.criterion, share))
        self.masks.set({name: keep for name, (keep, _) in decided.items()})
        forget_moments(trainer.optimizers, {weights[name]: back for name, (_, back) in decided.items()})
        self._exchanged = time
        self.forget_evidence()
        number = sum(int(back.sum()) for _, back in decided.values())
        self.session.write("decision", f"{self.state_key}: exchanged {number} weights", exchanged=number)

    def _exchanges(
        self,
        weights: Mapping[str, Parameter],
        evidence: Callable[[str], Evidence],
        growth: Criterion | None,
        share: float,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        assert growth is not None
        worth = scores_of(self._criterion, list(weights), evidence)
        growing = scores_of(growth, list(weights), evidence)
        return {
            name: exchange(self.masks.keep(name, weight), worth[name], growing[name], share)
            for name, weight in weights.items()
        }

    def _release(self, trainer: L.Trainer) -> None:
        weights = find_weights(self.session.module, *self._patterns)
        back = {name: ~self.masks.keep(name, weight) for name, weight in weights.items()}
        self.masks.set({name: torch.ones_like(one) for name, one in back.items()})
        forget_moments(trainer.optimizers, {weights[name]: one for name, one in back.items()})
        self._released, self._reached = True, 0.0
        self.session.write("decision", f"{self.state_key}: all weights are back", reached=0.0)

    @property
    def _seen(self) -> bool:
        """Whether there is any evidence since the last cut or exchange."""
        gathering = self._gathering
        return gathering is None or gathering.steps > 0

    def figures(self) -> dict[str, float]:
        """Share of zeros among the targets, and in the whole network."""
        zeros = sum(int((p == 0).sum()) for p in self.session.module.parameters())
        total = sum(p.numel() for p in self.session.module.parameters())
        return {**super().figures(), "network_sparsity": zeros / max(total, 1)}

    def get_compression_state(self) -> dict[str, Any]:
        """The masks too."""
        own = {"masks": self.masks.to_state(), "exchanged": self._exchanged, "released": self._released}
        return {**super().get_compression_state(), **own}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """The masks too."""
        super().set_compression_state(state)
        self.masks.from_state(state["masks"])
        self._exchanged, self._released = state["exchanged"], state["released"]

    def state_dict(self) -> dict[str, Any]:
        """The point to rewind to and the sensitivity scan too; a rollback leaves them alone."""
        point = None if self._point is None else self._point.to_state()
        curves = None if self._curves is None else self._curves.to_state()
        return {**super().state_dict(), "point": point, "curves": curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The point to rewind to and the sensitivity scan too."""
        super().load_state_dict(state_dict)
        point, curves = state_dict["point"], state_dict["curves"]
        self._point = None if point is None else RewindPoint(**point)
        self._curves = None if curves is None else Sensitivity.from_state(curves)


def _final(sparsity: float | None, pattern: Pattern | None) -> float:
    """The share that was asked for, or that the pattern fixes."""
    fixed = None if pattern is None else pattern.sparsity
    if sparsity is None and fixed is None:
        raise CompressionError("WeightPruning needs a sparsity: WeightPruning(0.9) takes nine tenths of the weights.")
    if sparsity is not None and fixed is not None and not isclose(sparsity, fixed):
        raise CompressionError(f"sparsity={sparsity} and the pattern, which makes {fixed:g}: leave sparsity out.")
    return fixed if sparsity is None else sparsity  # type: ignore[return-value]

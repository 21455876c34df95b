"""What all callbacks share that approach a target in cuts: a schedule, a gate, snapshots, and the record of it all."""

from __future__ import annotations

import warnings
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from math import isfinite
from typing import Any

import lightning as L

from lightning_compress.errors import CompressionError
from lightning_compress.training.callback import CompressionCallback
from lightning_compress.training.evaluation import evaluate_copy
from lightning_compress.training.horizon import keep_horizon
from lightning_compress.training.recovery import Gate, Recovery
from lightning_compress.training.schedule import DEFAULT_MAX_STEP, Schedule, Shape, Target
from lightning_compress.training.snapshot import Snapshot
from lightning_compress.values import is_number


class GradualCallback(CompressionCallback):
    """Approaches ``final`` in cuts, at the start of a batch; a subclass says what a cut is.

    Args:
        final: share to reach, in [0, 1).
        schedule: name of a shape, a callable, or a :class:`Schedule`.
        recover: the gate; then each recovery releases the next target, and time only sets the first.
        max_step: largest share of what is left that one cut may take; None is 20 %.
        name: distinguishes two callbacks of one class.

    Raises:
        CompressionError: a value outside of its range.
    """

    def __init__(
        self,
        final: float,
        *,
        schedule: str | Shape | Schedule,
        recover: Recovery | Mapping[str, Any] | None,
        max_step: float | None,
        name: str | None,
    ) -> None:
        super().__init__(name)
        if not is_number(final) or not 0 <= final < 1:
            raise CompressionError(f"{self.state_key}: {final!r} is not a share in [0, 1); 0.9 takes nine tenths away.")
        if max_step is not None and not (is_number(max_step) and 0 < max_step <= 1):
            raise CompressionError(f"{self.state_key}: max_step={max_step} is not a share in (0, 1].")
        self.final = final
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule(schedule)
        self.recover = Recovery.of(recover) if recover is not None else None
        self.max_step = max_step
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self.start_over()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: which module was fitted last is not part of it."""
        return {**self.__dict__, "_fitted": None, "_session": None}

    def start_over(self) -> None:
        """Forget how far a network is: for the first fit, another module, or a file that knows nothing of it."""
        self._gate = Gate(self.recover) if self.recover is not None else None
        self._horizon: float | None = None
        self._targets: tuple[Target, ...] = ()
        self._reached = 0.0
        self._goal = 0.0
        self._snapshot: Snapshot | None = None
        self._failed = False

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def cut(self, target: float) -> float:
        """Take the network to ``target``; return what was reached."""

    @property
    @abstractmethod
    def quantity(self) -> str:
        """What is counted, as it stands in logs: "sparsity", "channels removed"."""

    @property
    def ready(self) -> bool:
        """Whether all that the next cut needs is there; it waits for the next batch otherwise."""
        return True

    def reassert(self) -> None:
        """Restore what has been reached where another callback's edit has changed it."""

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def reached(self) -> float:
        """The share that has been reached."""
        return self._reached

    @property
    def on_target(self) -> bool:
        """Reached what was asked, or the ceiling; and no cut waits for its recovery."""
        settled = self._gate is None or not (self._gate.waiting or self._failed)
        return settled and (self._goal >= self.final or (self._gate is not None and self._gate.stopped))

    def state_dict(self) -> dict[str, Any]:
        """Time, gate, snapshot and what the subclass keeps; primitives and tensors only."""
        return {
            "horizon": self._horizon,
            "final": self.final,
            "failed": self._failed,
            "gate": None if self._gate is None else self._gate.to_state(),
            "snapshot": None if self._snapshot is None else self._snapshot.to_state(),
            "compression": self.get_compression_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the horizon of the first start holds."""
        self._horizon = state_dict["horizon"]
        self._failed = state_dict["failed"]
        if self._gate is not None and state_dict["gate"] is not None:
            self._gate.from_state(state_dict["gate"])
        self._snapshot = None if state_dict["snapshot"] is None else Snapshot.from_state(state_dict["snapshot"])
        self.set_compression_state(state_dict["compression"])

    def get_compression_state(self) -> dict[str, Any]:
        """How far the network is; a rollback goes back to it."""
        return {"reached": self._reached, "goal": self._goal}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back, or on after a resume."""
        self._reached, self._goal = state["reached"], state["goal"]

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A second fit of one module goes on; another module starts over."""
        if stage == "fit":
            if self._fitted is not None and self._fitted() is not pl_module:
                self.start_over()
            self._fitted = weakref.ref(pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fix the horizon at the first start, and with it the list of targets."""
        super().on_train_start(trainer, pl_module)
        self._horizon = keep_horizon(trainer, self.state_key, self._horizon)
        self._targets = self.schedule.targets(self.final, horizon=self._horizon, max_step=self.max_step)
        if self._gate is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._check_moments(self._horizon * trainer.num_training_batches / trainer.accumulate_grad_batches)
        if self._gate is not None and self._gate.waiting:
            self.session.unconfirmed = self

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Cut, or roll back, if it is time; not amid accumulated gradients."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._act(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the gate see the metric; the network itself stays as it is until the save is over."""
        super().on_validation_end(trainer, pl_module)
        if self._gate is None or trainer.sanity_checking or trainer.state.fn != "fit" or not self._gate.waiting:
            return
        recovery = self._gate.recovery
        value = self.session.from_first(lambda: recovery.read(trainer.callback_metrics))
        verdict = self._gate.observe(value)
        if verdict == "recovered":
            took = f"{self._gate.checks} validation{'s' * (self._gate.checks > 1)}"
            self._confirm(f"{recovery.monitor} is back at {value:.4g} after {took}", value)
        elif verdict == "failed" and recovery.on_failure == "continue":
            self._confirm(f"{recovery.monitor} stayed at {value:.4g}; kept all the same", value)
        elif verdict == "failed":
            self._failed = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how far the network is."""
        if not trainer.barebones:
            for name, value in self.figures().items():
                pl_module.log(f"compress/{name}", value, sync_dist=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take back a cut that the fit left no time to recover; write down what was asked and what was reached."""
        if self._gate is not None and (self._gate.waiting or self._failed):
            self._roll_back("the fit ended before the metric was back")
        self.session.write("finish", f"{self.state_key}: {self._summary()}", asked=self.final, **self._figures())
        if self._gate is None and self._goal < self.final:
            warnings.warn(f"{self.state_key}: the fit ended before the schedule: {self._summary()}.", stacklevel=2)

    def figures(self) -> dict[str, float]:
        """What is logged under ``compress/`` after each epoch."""
        suffix = "" if self.name is None else f"_{self.name}"
        return {self.quantity.replace(" ", "_") + suffix: self._reached}

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _act(self, trainer: L.Trainer) -> None:
        if self._failed:
            self._roll_back("the metric did not come back", halve=True)
        self.reassert()
        target = self._next_target()
        if target is None or not self.ready:
            return
        if self._gate is not None and self._gate.reference is None:
            self._measure_reference(trainer)
        if self._gate is not None:
            self._snapshot = Snapshot.take(self.session)
        before = self._reached
        reached = self.cut(target)
        self._reached, self._goal = reached, target
        if reached == before:
            self._snapshot = None
            return
        text = (
            f"{self.state_key}: {self.quantity} {before:.2%} -> {reached:.2%} (asked {target:.2%} of {self.final:.2%})"
        )
        self.session.write("cut", text, before=before, target=target, **self._figures())
        if self._gate is not None:
            self._gate.cut()
            self.session.unconfirmed = self

    def _next_target(self) -> float | None:
        """The target that is due now; None where there is none, or something has to be waited for."""
        if self._goal >= self.final or self.session.unconfirmed is not None:
            return None
        following = [target for target in self._targets if target.value > self._goal + 1e-12]
        if not following or self.session.time < self._targets[0].time:
            return None
        if self._gate is None:
            return following[0].value if following[0].time <= self.session.time + 1e-9 else None
        if self._gate.stopped:
            return None
        position = self._targets.index(following[0])
        step = following[0].value - (self._targets[position - 1].value if position else 0.0)
        left = DEFAULT_MAX_STEP if self.max_step is None else self.max_step
        step = min(self._gate.scale * step, left * (1 - self._goal))
        return min(following[0].value if self._gate.scale == 1 else self._goal + step, self.final)

    def _measure_reference(self, trainer: L.Trainer) -> None:
        assert self._gate is not None
        recovery = self._gate.recovery
        metrics = evaluate_copy(trainer, self.session.module)
        value = self.session.from_first(lambda: recovery.read(metrics))
        if not isfinite(value):
            raise CompressionError(
                f"{self.state_key}: {recovery.monitor} is {value} before the first cut; nothing could recover to that."
            )
        self._gate.reference = value
        text = (
            f"{self.state_key}: {recovery.monitor} is {value:.4g} before the first cut; "
            f"recovered means within {recovery.tolerance:g}"
        )
        self.session.write("decision", text, reference=value)

    def _confirm(self, reason: str, value: float) -> None:
        self._snapshot = None
        self.session.unconfirmed = None
        self.session.write("recovery", f"{self.state_key}: {reason}", value=value, **self._figures())

    def _roll_back(self, reason: str, *, halve: bool = False) -> None:
        assert self._gate is not None
        assert self._snapshot is not None
        failed = self._reached
        self._snapshot.restore(self.session)
        self._snapshot, self._failed, self.session.unconfirmed = None, False, None
        self._gate.waiting = False
        text = f"{self.state_key}: {reason}; back from {failed:.2%} to {self._reached:.2%}"
        self.session.write("rollback", text, before=failed, **self._figures())
        if halve:
            self._gate.fail()
            if self._gate.stopped:
                self.session.write(
                    "stop",
                    f"{self.state_key}: cutting stops; {self._reached:.2%} is the ceiling",
                    reached=self._reached,
                )
            else:
                self.session.write(
                    "decision", f"{self.state_key}: the next step is {self._gate.scale:g} of the scheduled one"
                )

    def _check_moments(self, moments: float) -> None:
        """Refuse a fit that has fewer steps than the schedule has cuts."""
        if len(self._targets) > moments:
            limit = DEFAULT_MAX_STEP if self.max_step is None else self.max_step
            raise CompressionError(
                f"{self.state_key} needs {len(self._targets)} cuts of at most {limit:.0%} of what is left, and the fit "
                f"has only {moments:.0f} steps. Train longer, or allow larger cuts with max_step."
            )

    def _figures(self) -> dict[str, str | float]:
        """Who, what is counted and how far it is: with every entry of the Journal."""
        return {"callback": self.state_key, "quantity": self.quantity, "reached": self._reached}

    def _summary(self) -> str:
        return f"asked for {self.final:.2%} {self.quantity}, reached {self._reached:.2%}"

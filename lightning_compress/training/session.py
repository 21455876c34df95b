"""The Session: one per module, outside its tree, however many callbacks there are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning as L
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.plan import (
    CHECKPOINT_KEY,
    AttachExits,
    Journal,
    KeepIndices,
    Plan,
    Record,
    ReplaceModule,
    read_checkpoint,
)
from lightning_compress.plan.state import PlanEdit
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import TracingInput, capture, private_copy, verify_edit
from lightning_compress.training import private
from lightning_compress.training.hooks import unwrap_hooks, wrap_hooks
from lightning_compress.training.optimizers import OptimizerBinding, OptimizerState
from lightning_compress.training.resume import ResumeState

if TYPE_CHECKING:
    from lightning_compress.training.callback import CompressionCallback

T = TypeVar("T")
_SESSIONS: weakref.WeakKeyDictionary[L.LightningModule, Session] = weakref.WeakKeyDictionary()


class Session:
    """What this package knows of a module while a Trainer has it.

    It owns the one wrap of the checkpoint hooks, replays Plans before weights are loaded, binds the optimizers, and
    carries out edits as transactions.

    Attributes:
        record: the module's Plan, Journal and followers; it outlives the Session.
        callbacks: ours in this Trainer, in the order in which they act.
        unconfirmed: the callback whose last cut waits for its recovery; nobody else cuts meanwhile.
        time: the present moment of the fit in epochs, the share of the running one included.
    """

    def __init__(self, module: L.LightningModule) -> None:
        self._module = weakref.ref(module)
        self._tracing: TracingInput | None = None
        self.record = Record.of(module)
        self.callbacks: list[CompressionCallback] = []
        self.optimizers: OptimizerBinding | None = None
        self.resume = ResumeState()
        self.unconfirmed: CompressionCallback | None = None
        self.trainer: L.Trainer | None = None
        self.time = 0.0

    @classmethod
    def of(cls, module: L.LightningModule) -> Session:
        """The one Session of ``module``; made at the first call, gone when the last callback has left."""
        if module not in _SESSIONS:
            _SESSIONS[module] = cls(module)
        return _SESSIONS[module]

    @staticmethod
    def find(module: L.LightningModule) -> Session | None:
        """The Session of ``module`` if one is open."""
        return _SESSIONS.get(module)

    @property
    def module(self) -> L.LightningModule:
        """The module itself."""
        module = self._module()
        assert module is not None
        return module

    @property
    def journal(self) -> Journal:
        """The module's Journal."""
        return self.record.journal

    @property
    def plan(self) -> Plan:
        """The edits so far."""
        return Plan(tuple(self.record.edits))

    @property
    def on_target(self) -> bool:
        """Whether every callback has reached what it was asked for, or has settled for less."""
        return all(callback.on_target for callback in self.callbacks)

    # -- joining and leaving ------------------------------------------------------------------------------------------

    def join(self, callback: CompressionCallback, trainer: L.Trainer) -> None:
        """Take ``callback`` in; the first one wraps the checkpoint hooks. Idempotent."""
        if self.trainer is None:
            wrap_hooks(self.module, {"on_save_checkpoint": self._on_save, "on_load_checkpoint": self._on_load})
        self.trainer = trainer
        if callback not in self.callbacks:
            self.callbacks.append(callback)
            self.callbacks.sort(key=lambda one: one.order)

    def leave(self, callback: CompressionCallback) -> None:
        """Let ``callback`` go; with the last one everything of ours comes off the module. Idempotent."""
        if callback in self.callbacks:
            self.callbacks.remove(callback)
            callback.release()
        if not self.callbacks and self.trainer is not None:
            unwrap_hooks(self.module)
            self.unbind_optimizers()
            self.trainer = None
            _SESSIONS.pop(self.module, None)

    def close(self) -> None:
        """Let everybody go."""
        for callback in list(self.callbacks):
            self.leave(callback)

    def keep_time(self, batches: int) -> None:
        """``batches`` of the running epoch are done; in a stream without a length the whole fit counts as one epoch."""
        trainer = self.trainer
        assert trainer is not None
        if trainer.num_training_batches < float("inf"):
            self.time = trainer.current_epoch + batches / trainer.num_training_batches
        elif trainer.max_steps != -1:
            self.time = trainer.global_step / trainer.max_steps
        else:
            self.time = float(trainer.current_epoch)

    def leads(self, callback: CompressionCallback) -> bool:
        """Whether ``callback`` is the one that does what is to be done once per Session."""
        return bool(self.callbacks) and self.callbacks[0] is callback

    def bind_optimizers(self, trainer: L.Trainer) -> None:
        """Carry the Trainer's optimizers through the edits to come."""
        self.unbind_optimizers()
        self.optimizers = OptimizerBinding(self.module, trainer.optimizers)
        self.record.followers.append(self.optimizers)

    def unbind_optimizers(self) -> None:
        """Stop carrying them."""
        if self.optimizers in self.record.followers:
            self.record.followers.remove(self.optimizers)
        self.optimizers = None

    # -- edits --------------------------------------------------------------------------------------------------------

    @property
    def tracing(self) -> TracingInput:
        """A call that runs the network: ``example_input_array``, or a few training samples as ``training_step``
        passes it on.
        """
        if self._tracing is None:
            self._tracing = self._example() or self._captured()
        return self._tracing

    def prove(self, edit: KeepIndices, norms: Collection[str] = ()) -> None:
        """Try ``edit`` on copies: the network computes the same, and the whole training step still runs.

        Args:
            edit: what is to be taken out.
            norms: normalisations that may take their statistics over what is left.

        Raises:
            CompressionError: it does not; nothing has been touched.
        """
        verify_edit(self.module, edit, self.tracing, norms=norms)
        self.rehearse([edit])

    def rehearse(self, edits: Sequence[PlanEdit]) -> None:
        """See on a copy that the whole training step still runs after ``edits``, as it did before.

        Raises:
            CompressionError: it does not; nothing has been touched.
        """
        if self._rehearse([]) is None and (error := self._rehearse(edits)) is not None:
            raise CompressionError(
                f"After {edits[0].label!r} the training step no longer runs ({error}): it uses these layers outside of "
                "the call that was traced. Leave them alone with exclude=, or set an example_input_array and a forward "
                "that cover it."
            ) from error

    def _rehearse(self, edits: Sequence[PlanEdit]) -> Exception | None:
        """What a training step on a copy raises after ``edits``."""
        trainer = self.trainer
        if trainer is None or not trainer.training:
            return None
        try:
            with isolated_random_states():
                copy = private_copy(self.module)
                for edit in edits:
                    edit.apply(copy)
                private.rehearse_training_step(copy, trainer, private.small_train_batch(trainer, self.module))
        except Exception as error:
            return error
        return None

    def apply(self, edit: KeepIndices | ReplaceModule | AttachExits) -> None:
        """Make an edit that has been proved: gradients go, followers follow, the data-parallel wrapper is renewed."""
        self.module.zero_grad(set_to_none=True)
        self.record.apply(edit)
        self.rewrap()

    def undo_to(self, length: int) -> None:
        """Take edits back until ``length`` are left; what comes back is zeros until a snapshot is loaded."""
        if len(self.record.edits) > length:
            self.module.zero_grad(set_to_none=True)
            while len(self.record.edits) > length:
                self.record.undo()
            self.rewrap()

    def rewrap(self) -> None:
        """Renew the data-parallel wrapper after a change of shape."""
        if self.trainer is not None and self.trainer.training:
            private.rewrap_model(self.trainer, self.module)

    def from_first(self, decision: Callable[[], T]) -> T:
        """What process 0 decides, on all processes; the others do not even ask. A refusal is raised on all of them."""
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return decision()
        outcome: tuple[Any, CompressionError | None] = None, None
        if trainer.is_global_zero:
            try:
                outcome = decision(), None
            except CompressionError as error:
                outcome = None, error
        decided, refusal = trainer.strategy.broadcast(outcome)
        if refusal is not None:
            raise refusal
        return cast(T, decided)

    def get_optimizer_state(self) -> OptimizerState:
        """What the optimizers keep, by parameter name."""
        return self.optimizers.get_state() if self.optimizers is not None else []

    def set_optimizer_state(self, state: OptimizerState) -> None:
        """Go back to an earlier optimizer state."""
        if self.optimizers is not None:
            self.optimizers.set_state(state)

    def write(self, kind: str, text: str, **data: Any) -> None:
        """Append to the Journal at the present time of the fit."""
        step = self.trainer.global_step if self.trainer is not None else None
        self.journal.add(kind, text, epoch=self.time, step=step, **data)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _on_save(self, checkpoint: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.amend_checkpoint(checkpoint)
        write_record(self.module, checkpoint)
        if self.trainer is not None and self.trainer.state.fn == "fit":
            checkpoint[CHECKPOINT_KEY]["resume"] = self.resume.to_state(self.trainer)

    def _on_load(self, checkpoint: dict[str, Any]) -> None:
        plan, journal = read_checkpoint(checkpoint) or (Plan(), Journal())
        plan.apply_to(self.module)
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting or not len(self.journal):
            self.record.journal = journal
        if fitting:
            for callback in self.callbacks:
                if callback.state_key not in checkpoint.get("callbacks", {}):
                    callback.start_over()
        for callback in self.callbacks:
            callback.read_checkpoint(checkpoint)
        if fitting and CHECKPOINT_KEY in checkpoint:
            self.resume.from_state(checkpoint[CHECKPOINT_KEY].get("resume"))

    # -- the tracing input --------------------------------------------------------------------------------------------

    def _example(self) -> TracingInput | None:
        example = self.module.example_input_array
        if example is None:
            return None
        example = _to_device(example, self.module.device)
        if isinstance(example, dict):
            return TracingInput("", (), example)
        return TracingInput("", example if isinstance(example, tuple) else (example,), {})

    def _captured(self) -> TracingInput:
        trainer = self.trainer
        assert trainer is not None
        with isolated_random_states():
            batch = private.small_train_batch(trainer, self.module)
        return capture(self.module, lambda copy: private.rehearse_training_step(copy, trainer, batch))


def write_record(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Put the Plan and the Journal of ``module`` into a checkpoint."""
    record = Record.of(module)
    ours = {"plan": Plan(tuple(record.edits)).to_state(), "journal": record.journal.to_state()}
    checkpoint[CHECKPOINT_KEY] = {**checkpoint.get(CHECKPOINT_KEY, {}), **ours}


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return tuple(_to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    return value

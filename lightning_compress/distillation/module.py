"""Distillation as a LightningModule of its own: for plain networks, and around any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_compress.distillation.callback import Distillation
from lightning_compress.distillation.indexed import unwrap
from lightning_compress.distillation.outputs import labels_in, logits_in
from lightning_compress.errors import CompressionError
from lightning_compress.training import CompressionCallback, private

STUDENT = "student."
_STEPS = (
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "configure_optimizers",
    "configure_gradient_clipping",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
)
_HOOKS = tuple(name for kind in (ModelHooks, DataHooks) for name in vars(kind) if not name.startswith("__"))
DELEGATED = (*_STEPS, *_HOOKS)
"""What the wrapper passes on to a LightningModule in it."""


class DistillationModule(L.LightningModule):
    """A student with its teachers; what is trained, saved and counted is the student alone.

    A plain module gets built-in steps for batches (inputs, labels): its loss, AdamW, ``val_loss`` and ``val_acc``, the
    same of test data, and predictions. A LightningModule keeps its own steps, hooks, optimizers and logged metrics. In
    both cases the distillation itself is done by :class:`~lightning_compress.distillation.Distillation`, and
    checkpoints hold the student's own keys and hyper-parameters, so they load in the student's own class.

    Args:
        student: a module from a batch's first entry to logits, or a LightningModule.
        teachers: as in :class:`~lightning_compress.distillation.Distillation`.
        task_loss: of a plain student, ``f(logits, labels)``.
        optimizer: of a plain student, from parameters to an optimizer; None: AdamW with learning rate 1e-3.
        part: name of the part of the student whose outputs are compared, such as the generator of two networks; None:
            whatever the training step calls.
        options: further arguments of :class:`~lightning_compress.distillation.Distillation`.

    >>> module = DistillationModule(nn.Linear(4, 3), nn.Linear(4, 3), temperature=2.0)
    >>> sorted(module.student_state_dict())
    ['bias', 'weight']
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Any,
        *,
        task_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        part: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise CompressionError(
                f"A {type(student).__name__} has no parameters to train: DistillationModule(student, ...) takes a "
                "module, or a LightningModule."
            )
        for name, function in (("task_loss", task_loss), ("optimizer", optimizer or torch.optim.AdamW)):
            if not callable(function):
                raise CompressionError(f"DistillationModule({name}={function!r}): a function; see its description.")
        self.student = student
        self._task_loss, self._optimizer = task_loss, optimizer
        named = None if part is None else f"{STUDENT}{part}"
        self._distillation = Distillation(teachers, student=named, **options)
        self._distillation.in_module = True
        if isinstance(student, L.LightningModule):
            self._delegate(student)

    def _delegate(self, student: L.LightningModule) -> None:
        self.automatic_optimization = student.automatic_optimization
        for name in ("_hparams", "_hparams_name"):  # what Lightning writes into checkpoints
            if hasattr(student, name):
                setattr(self, name, getattr(student, name))
        for name in DELEGATED:
            # a step that the student does not have is not made up for it either
            if hasattr(L.LightningModule, name) and (is_overridden(name, student) or name in vars(DistillationModule)):
                self.__dict__[name] = getattr(student, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What Lightning tells the wrapper of the hook that runs, the student has to know for its ``self.log``."""
        super().__setattr__(name, value)
        if name == "_current_fx_name" and isinstance(self._modules.get("student"), L.LightningModule):
            self.student._current_fx_name = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student(*args, **kwargs)

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """The student's own, and the distillation.

        Raises:
            CompressionError: another callback changes shapes, and its Plan would name the student's layers as this
                module does; or the Trainer has a distillation of its own.
        """
        for callback in private.get_callbacks(self.trainer):
            if isinstance(callback, CompressionCallback) and callback.edits_shape:
                raise CompressionError(
                    f"{callback.state_key} in a DistillationModule would write a Plan that the student's own class "
                    "cannot replay. Make the student a LightningModule and use the callback Distillation beside it."
                )
            if isinstance(callback, Distillation) and not callback.in_module:
                raise CompressionError(
                    "The Trainer has a Distillation besides that of this DistillationModule, and would drop it. Give "
                    "all teachers to the module, or both callbacks to the Trainer and the student to fit()."
                )
        own = self.student.configure_callbacks() if isinstance(self.student, L.LightningModule) else []
        return [*([own] if isinstance(own, Callback) else own), self._distillation]

    # -- a plain student ----------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The task's loss."""
        loss = self._loss_of(batch)[0]
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the task's loss and, for classes, the accuracy."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The same of test data."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The student's output for the inputs, with or without labels beside them."""
        sample, _ = unwrap(batch)
        return self.student(sample[0] if isinstance(sample, tuple | list) else sample)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of a plain student."""
        build = self._optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
        return build(self.student.parameters())

    def _evaluate(self, batch: Any, stage: str) -> None:
        loss, logits, labels = self._loss_of(batch)
        self.log(f"{stage}_loss", loss)
        if logits.dim() == 2 and not labels.is_floating_point():
            self.log(f"{stage}_acc", (logits.argmax(1) == labels).float().mean())

    def _loss_of(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        sample, _ = unwrap(batch)
        labels = labels_in(sample)
        if labels is None or not isinstance(sample, tuple | list) or len(sample) != 2:
            found = f"{len(sample)} entries" if isinstance(sample, tuple | list) else f"a {type(sample).__name__}"
            raise CompressionError(
                f"The built-in step takes batches (inputs, labels), and this one is {found}. Give the student a "
                "training_step of its own: make it a LightningModule."
            )
        logits = logits_in(self.student(sample[0]))
        return self._task_loss(logits, labels), logits, labels

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def student_state_dict(self) -> dict[str, Tensor]:
        """The student's parameters and buffers under their own names."""
        return dict(self.student.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The student's own keys, and what it adds itself."""
        checkpoint["state_dict"] = {key.removeprefix(STUDENT): v for key, v in checkpoint["state_dict"].items()}
        if isinstance(self.student, CheckpointHooks):
            self.student.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The wrapper's keys again."""
        if isinstance(self.student, CheckpointHooks):
            self.student.on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = {f"{STUDENT}{key}": value for key, value in checkpoint["state_dict"].items()}

"""What happens in a student's steps: the forward is recorded, the teachers are asked, the losses are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_compress.distillation.engine import Engine
from lightning_compress.distillation.fidelity import Fidelity
from lightning_compress.distillation.indexed import TRANSFER_HOOKS, beside_rows, unwrap
from lightning_compress.distillation.outputs import labels_in, loss_in
from lightning_compress.distillation.recorder import Ask, Call, Recorder
from lightning_compress.distillation.step_hook import unwrap_step, wrap_step
from lightning_compress.distillation.transfer import TransferSet
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import evaluation_mode


@dataclass(frozen=True)
class Moment:
    """The present batch: its number in the fit, and what counts in it.

    Attributes:
        temperature: T.
        alpha: share of the distillation loss.
        step: batches since the start of the fit.

    Raises:
        CompressionError: a function of the user gave a temperature or a share out of range.
    """

    temperature: float
    alpha: float
    step: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf or not 0 <= self.alpha <= 1:
            raise CompressionError(
                f"Batch {self.step}: temperature={self.temperature!r} and alpha={self.alpha!r}; a temperature is "
                "above 0, a share in [0, 1]. Look at the functions that were given for them."
            )


class DistilledSteps:
    """The wraps of a LightningModule's steps for the time of a fit.

    Args:
        module: the LightningModule.
        trainer: that fits it.
        engine: turns calls of the student into a loss.
        transfer: unlabelled inputs on which the student is taught instead; or None.

    Attributes:
        moment: of the batch that is trained on.
        fidelity: sums of the running validation; None compares nothing.
    """

    def __init__(
        self, module: L.LightningModule, trainer: L.Trainer, engine: Engine, transfer: TransferSet | None
    ) -> None:
        self._module, self._trainer, self._engine, self._transfer = module, trainer, engine, transfer
        self._recorder: Recorder | None = None
        self._student = ""
        self._labels: Tensor | None = None
        self._rows: Tensor | None = None
        self._sum, self._count = torch.zeros(()), 0
        self.moment = Moment(1.0, 0.0)
        self.fidelity: Fidelity | None = None

    @property
    def ready(self) -> bool:
        """Whether the student is known."""
        return self._recorder is not None

    def wrap(self) -> None:
        """Stand around the module's own steps from here on."""
        wrap_step(self._module, "training_step", self._training_step)
        wrap_step(self._module, "validation_step", self._validation_step)
        for name in TRANSFER_HOOKS:
            if is_overridden(name, self._module):
                wrap_step(self._module, name, beside_rows)
        for part in self._manually_optimized():
            wrap_step(part, "manual_backward", self._manual_backward)

    def unwrap(self) -> None:
        """Leave no trace."""
        for name in ("training_step", "validation_step", *TRANSFER_HOOKS):
            unwrap_step(self._module, name)
        for part in self._manually_optimized():
            unwrap_step(part, "manual_backward")
        if self._recorder is not None:
            self._recorder.detach()

    def observe(self, student: str, taps: Sequence[str]) -> None:
        """Record the calls of ``student`` and the outputs of the tapped modules.

        Raises:
            CompressionError: the student cannot take the transfer set's samples.
        """
        self._student = student
        if self._transfer is not None:
            self._try_transfer(self._transfer)
        self._recorder = Recorder(self._module, student, taps)
        self._recorder.attach()

    def take_mean(self) -> float | None:
        """The mean distillation loss since the last time; None where there was none."""
        mean = float(self._sum) / self._count if self._count else None
        self._sum, self._count = torch.zeros(()), 0
        return mean

    # -- around the user's methods ------------------------------------------------------------------------------------

    def _training_step(self, own: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        sample, self._rows = unwrap(batch)
        self._labels = labels_in(sample)
        before = self._count
        with self._recording(self._ask if self._transfer is None else None) as recorder:
            output = own(sample, *args, **kwargs)
        if not self._module.automatic_optimization:
            recorder.take()
            if self._count == before:
                self._refuse_step()
            return output
        loss = loss_in(output)
        if loss is None:
            return output
        used, others = recorder.take(loss), recorder.take()
        mixed = self._mix(loss, used or others)
        return {**output, "loss": mixed} if isinstance(output, Mapping) else mixed

    def _manual_backward(self, own: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> None:
        recorder = self._recorder
        if recorder is None:
            own(loss, *args, **kwargs)
            return
        if recorder.active:
            # the discriminator's loss is not the generator's: that call waits for its own
            calls = [call for call in recorder.take(loss) if call.trains]
            if calls:
                loss = self._mix(loss, calls)
        active, recorder.active = recorder.active, False  # a checkpointed forward runs again in here
        try:
            own(loss, *args, **kwargs)
        finally:
            recorder.active = active

    def _validation_step(self, own: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        sample, _ = unwrap(batch)
        if self.fidelity is None:
            return own(sample, *args, **kwargs)
        with self._recording() as recorder:
            output = own(sample, *args, **kwargs)
        labels = labels_in(sample)
        with torch.no_grad():
            for call in recorder.take():
                self._engine.measure(call, labels, self.fidelity)
        return output

    # -- the loss -----------------------------------------------------------------------------------------------------

    def _mix(self, loss: Tensor, calls: Sequence[Call]) -> Tensor:
        calls = [call for call in calls if call.trains]
        if not calls:
            self._refuse_step()
        labels, rows = self._labels, self._rows
        if self._transfer is not None:
            calls, labels, rows = self._transferred(self._transfer), None, None
        moment = self.moment
        distillation = self._engine.distillation_loss(
            calls, temperature=moment.temperature, labels=labels, rows=rows, step=moment.step
        )
        self._sum, self._count = self._sum.to(distillation.device) + distillation.detach(), self._count + 1
        return (1 - moment.alpha) * loss + moment.alpha * distillation

    def _transferred(self, transfer: TransferSet) -> list[Call]:
        """Calls of the student with the transfer set's inputs of this step."""
        recorder = self._recorder
        assert recorder is not None
        amid_step = recorder.active
        with recorder.recording(self._ask):
            self._module.get_submodule(self._student)(self._inputs_of(transfer))
        recorder.active = amid_step
        return recorder.take()

    def _inputs_of(self, transfer: TransferSet) -> Tensor:
        trainer = self._trainer
        inputs = transfer.batch(self.moment.step, trainer.global_rank, trainer.world_size).to(self._module.device)
        converted: Tensor = trainer.precision_plugin.convert_input(inputs)
        return converted

    def _try_transfer(self, transfer: TransferSet) -> None:
        with isolated_random_states(), evaluation_mode(self._module), torch.no_grad():
            inputs = self._inputs_of(transfer)
            try:
                self._module.get_submodule(self._student)(inputs)
            except Exception as error:
                raise CompressionError(
                    f"The student {self._student!r} cannot take the transfer set's samples, {tuple(inputs.shape)} of "
                    f"{inputs.dtype}: {str(error).rstrip('.')}. They must be what the training step gives it."
                ) from error

    def _recording(self, ask: Ask | None = None) -> AbstractContextManager[Recorder]:
        assert self._recorder is not None
        return self._recorder.recording(ask)

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The teachers' answer, where the student's will be trained."""
        if self._engine.cache is not None or not torch.is_grad_enabled():
            return None
        return self._engine.ask(args, kwargs, self.moment.step)

    def _refuse_step(self) -> None:
        raise CompressionError(
            f"This training_step ran no forward of {self._student!r} with gradients before its loss, so nothing would "
            "be distilled. Call the network in the step, and in manual optimization give a loss of its output to "
            "self.manual_backward(loss)."
        )

    def _manually_optimized(self) -> list[L.LightningModule]:
        """The module and what it wraps, as far as they call ``manual_backward`` themselves."""
        parts = [part for part in self._module.modules() if isinstance(part, L.LightningModule)]
        return [part for part in parts if not part.automatic_optimization]

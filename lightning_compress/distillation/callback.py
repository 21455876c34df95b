"""Soft targets for any LightningModule: its own training step, its own checkpoint, and teachers beside it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_compress.distillation.adapter_training import AdapterTraining
from lightning_compress.distillation.bank import Pool, TeacherBank
from lightning_compress.distillation.build_cache import open_cache
from lightning_compress.distillation.engine import Engine
from lightning_compress.distillation.ensemble import Worth
from lightning_compress.distillation.fidelity import Fidelity
from lightning_compress.distillation.indexed import unwrap
from lightning_compress.distillation.options import refuse_options
from lightning_compress.distillation.output_shapes import OF_CLASSES
from lightning_compress.distillation.outputs import labels_in
from lightning_compress.distillation.precision import outputs_of
from lightning_compress.distillation.ramp import Value, as_value, at, in_range
from lightning_compress.distillation.recorder import find_part
from lightning_compress.distillation.rehearsal import rehearse, training_step_of
from lightning_compress.distillation.steps import DistilledSteps, Moment
from lightning_compress.distillation.taps import Tap, as_taps
from lightning_compress.distillation.teacher import as_teachers
from lightning_compress.distillation.transfer import TransferSet
from lightning_compress.distillation.weights import weights_by_validation, worth_by_validation
from lightning_compress.errors import CompressionError
from lightning_compress.registry import resolve
from lightning_compress.training import CompressionCallback
from lightning_compress.training.horizon import length_of_fit

LOSSES = "lightning_compress.distillation.losses"


class Distillation(CompressionCallback):
    """Adds what teachers say to a LightningModule's own loss: ``(1 - alpha) * own + alpha * distillation``.

    The module is not edited. In ``training_step`` the student's forwards are recorded, the teachers get the same
    arguments, and the returned loss (in manual optimization, the first one given to ``manual_backward`` that was
    computed from a forward) is mixed with the distillation loss. Distilled are the forwards from which the loss was
    computed, all of them where it was from none; one that only looks, as for a metric, is not, and spares the teachers
    too inside of ``torch.no_grad()``. Teachers are in no module tree: not in the checkpoint, the optimizer or
    DDP; they are asked in evaluation mode without gradients, and their parameters and buffers are hashed at the start
    and checked at the end. Logged are ``compress/distillation_loss``, ``compress/temperature``, ``compress/alpha``,
    and after each validation, where outputs are distributions over classes (of samples, tokens or
    pixels), ``compress/agreement`` and ``compress/kl_to_teacher``, and with labels (of samples or pixels) the
    likelihood and calibration of both.

    Args:
        teachers: one or several: modules, paths of checkpoints, callables, or
            :class:`~lightning_compress.distillation.Teacher`.
        loss: name of a function in ``distillation/losses``, or any callable of ``student`` and ``teacher``, which gets
            ``temperature`` and ``labels`` too if it has such parameters.
        temperature: above 0; or a function of the progress of the fit, such as
            :class:`~lightning_compress.distillation.Ramp`.
        alpha: share of the distillation loss, in [0, 1]; or a function, likewise.
        pool: name of a function in ``distillation/pools``, or any callable: how several teachers become one.
        weights: of the teachers; "validation" fits them to the validation data before the first step; None takes the
            teachers' own.
        cache: folder for the teachers' outputs; built at the start if it is not there, refused if it is stale. The
            training set must be wrapped in :class:`~lightning_compress.distillation.Indexed`.
        top_k: number of classes that the cache keeps of each output; None keeps all.
        taps: layers whose features are compared too: :class:`~lightning_compress.distillation.Tap` or mappings of its
            fields.
        transfer: a :class:`~lightning_compress.distillation.TransferSet`: soft targets are given on it instead of on
            the labelled batches.
        student: name of the part that is the student; None: whatever the training step calls.
        adapter_learning_rate: of the taps' adapters.
        fidelity: compare student and teacher in each validation, which costs the teachers' forward; and at the start,
            note in the Journal what each of several teachers is worth on the validation data.
        name: distinguishes two of them in a Trainer, which takes no two without.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; outputs of another kind than the loss
            reads, a teacher that cannot take the student's arguments, class counts that differ without a class map, a
            tapped layer that is not there, a stale cache, an empty training set: before the first step.

    >>> import lightning as L
    >>> from torch import nn
    >>> distillation = Distillation(nn.Linear(64, 10), temperature=4.0)
    >>> trainer = L.Trainer(callbacks=[distillation], logger=False, enable_checkpointing=False)
    """

    order = 5  # before cuts: adapters are built, or loaded, for the network as the checkpoint left it
    in_module = False
    """Whether a DistillationModule brings it into the Trainer."""

    def __init__(
        self,
        teachers: Any,
        *,
        loss: str | Callable[..., Tensor] = "kd",
        temperature: Value | Mapping[str, Any] = 4.0,
        alpha: Value | Mapping[str, Any] = 0.5,
        pool: str | Pool = "mean_logits",
        weights: Sequence[float] | str | None = None,
        cache: str | Path | None = None,
        top_k: int | None = None,
        taps: Sequence[Tap | Mapping[str, Any]] = (),
        transfer: TransferSet | None = None,
        student: str | None = None,
        adapter_learning_rate: float = 1e-3,
        fidelity: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.temperature = as_value(temperature, "temperature", low=1e-3, high=1e6)
        self.alpha = as_value(alpha, "alpha", low=0.0, high=1.0)
        function = resolve(loss, LOSSES)
        self.bank = TeacherBank(as_teachers(teachers), pool, outputs_of(function))
        self.engine = Engine(self.bank, function, as_taps(taps))
        self._weights = weights
        if isinstance(weights, str) and weights != "validation":
            raise CompressionError(f'Distillation(weights={weights!r}): numbers, "validation" or None.')
        if weights is not None and not isinstance(weights, str):
            self.bank.set_weights(weights)
        self.cache, self._top_k = cache, top_k
        self._transfer, self._student = transfer, student
        self._adapter_learning_rate = in_range(adapter_learning_rate, "adapter_learning_rate", low=1e-12, high=1e3)
        self._fidelity = fidelity
        refuse_options(self.bank, self.engine.taps, cache=cache, top_k=top_k, transfer=transfer)
        self._steps: DistilledSteps | None = None
        self._adapters: AdapterTraining | None = None
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self.start_over()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**vars(self), "_session": None, "_steps": None, "_adapters": None, "_fitted": None}

    @property
    def _tapped(self) -> list[str]:
        return [name for tap in self.engine.taps for name in tap.students]

    def start_over(self) -> None:
        """Forget adapters, fitted weights and the horizon: for the first fit, and for a fit of another module."""
        self._pending: dict[str, Any] = {}
        self._horizon: float | None = None

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Adapters, weights of the teachers and the horizon; never a teacher."""
        return {"horizon": self._horizon, "weights": self.bank.weights.tolist(), **self.get_compression_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the adapters are built."""
        self._horizon = state_dict["horizon"]
        self._pending = dict(state_dict)
        if len(state_dict["weights"]) == len(self.bank.teachers):
            self.bank.weights = torch.tensor(state_dict["weights"])
        else:  # those of other teachers
            del self._pending["weights"]

    def get_compression_state(self) -> dict[str, Any]:
        """The adapters, which a rollback takes back too."""
        if self._adapters is None:
            return {"adapters": self._pending.get("adapters")}
        return {"adapters": copy.deepcopy(self._adapters.state_dict())}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        if self._adapters is not None:
            self._adapters.load_state_dict(state["adapters"])

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the teachers; see that the names are there; wrap the steps."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self._steps is not None:
            return
        if self._fitted is not None and self._fitted() is not pl_module:
            self.start_over()
        self._fitted = weakref.ref(pl_module)
        if self._student is not None:
            find_part(pl_module, self._student, "student's")
        for name in self._tapped:
            find_part(pl_module, name, "tapped")
        self.bank.load(pl_module)
        self._steps = DistilledSteps(pl_module, trainer, self.engine, self._transfer)
        self._steps.wrap()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No teacher may be trained."""
        super().on_fit_start(trainer, pl_module)
        self.bank.refuse_trained(trainer.optimizers)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fix the horizon of what changes over the fit."""
        super().on_train_start(trainer, pl_module)
        if self._horizon is None and (callable(self.temperature) or callable(self.alpha)):
            self._horizon = length_of_fit(trainer, self.state_key)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step: rehearse it on a copy, put teachers, adapters and cache in place."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        steps = self._running
        if not steps.ready:
            self._prepare(trainer, pl_module, batch)
        batches = trainer.num_training_batches
        endless = isinstance(batches, float) and batches == float("inf")
        number = trainer.global_step if endless else trainer.current_epoch * int(batches) + batch_idx
        steps.moment = self._moment(number)

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Where a gradient scaler skipped the step, the adapters' gradients go with the others."""
        if self._adapters is not None:
            self._adapters.zero_grad()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean distillation loss, the temperature and alpha."""
        mean = self._running.take_mean()
        if mean is not None:
            moment = self._running.moment
            figures = {"distillation_loss": mean, "temperature": moment.temperature, "alpha": moment.alpha}
            self._log(pl_module, figures)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to compare student and teacher."""
        if self._steps is not None:
            compares = self._fidelity and self._steps.ready and self.bank.outputs in OF_CLASSES
            self._steps.fidelity = Fidelity() if compares else None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how faithful the student is."""
        if self._steps is not None and self._steps.fidelity is not None:
            self._steps.fidelity.all_reduce(pl_module.device)
            self._log(pl_module, self._steps.fidelity.compute())
            self._steps.fidelity = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that the teachers are what they were."""
        super().on_train_end(trainer, pl_module)
        self.bank.check_unchanged()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A fit without a single batch taught nothing."""
        super().on_fit_end(trainer, pl_module)
        if trainer.num_training_batches == 0:
            raise CompressionError("There was nothing to distil on: the training (transfer) set has no batch.")

    def release(self) -> None:
        """Take the wraps and hooks off; the adapters follow no more."""
        if self._steps is not None:
            self._steps.unwrap()
        if self._adapters is not None:
            self._pending = self.state_dict()
            self._adapters.detach()
            if self._adapters in self.session.record.followers:  # an error may have come before
                self.session.record.followers.remove(self._adapters)
        self.engine.release()
        self._steps = self._adapters = None
        super().release()

    # -- before the first step ----------------------------------------------------------------------------------------

    def _prepare(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        sample, _ = unwrap(batch)
        step = training_step_of(trainer, sample)
        call, sources = rehearse(module, step, student=self._student, taps=self._tapped)
        self.engine.prepare(call, sources, module.device, None if self._transfer is not None else labels_in(sample))
        if self._weights == "validation" and "weights" not in self._pending:
            self.bank.weights = weights_by_validation(self.bank, trainer, module, call.module)
        several, of_classes = len(self.bank.teachers) > 1, self.bank.outputs in ("classes", "any")
        if self._fidelity and several and of_classes and not self._pending:
            self._report_worth(worth_by_validation(self.bank, trainer, module, call.module))
        if self.cache is not None:
            self.engine.cache = open_cache(
                self.cache, self.bank, trainer, module, student=call.module, top_k=self._top_k
            )
        self._running.observe(call.module, self._tapped)
        if self.engine.tap_set is not None:
            self._adapters = AdapterTraining(self.engine.tap_set, self._adapter_learning_rate)
            self._adapters.load_state_dict(self._pending.get("adapters"))
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._adapters.attach(trainer.optimizers, None if scaler is None else scaler.get_scale)
            self.session.record.followers.append(self._adapters)

    def _report_worth(self, worth: Sequence[Worth]) -> None:
        for one in worth:
            text = f"teachers without {one.without}" if one.without else "all teachers"
            figures = {"without": one.without, "accuracy": one.accuracy, "nll": one.nll}
            text += f": accuracy {one.accuracy:.4f}, NLL {one.nll:.4f} on validation data"
            self.session.write("note", text, callback=self.state_key, **figures)

    # -- now ----------------------------------------------------------------------------------------------------------

    @property
    def _running(self) -> DistilledSteps:
        assert self._steps is not None
        return self._steps

    def _moment(self, step: int) -> Moment:
        progress = min(self.session.time / self._horizon, 1.0) if self._horizon else 0.0
        return Moment(at(self.temperature, progress), at(self.alpha, progress), step)

    def _log(self, module: L.LightningModule, figures: Mapping[str, float]) -> None:
        if not module.trainer.barebones:
            suffix = "" if self.name is None else f"_{self.name}"
            module.log_dict({f"compress/{key}{suffix}": value for key, value in figures.items()}, sync_dist=True)

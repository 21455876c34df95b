"""Early exits for any LightningModule: heads trained beside it, calibrated, and hung on it at the end of the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_compress.dynamic.calibration import Calibration, calibrate_exits
from lightning_compress.dynamic.exit_accuracy import ExitAccuracy
from lightning_compress.dynamic.exit_arguments import (
    Weights,
    check_numbers,
    check_weights,
    checked_calibration,
    checked_exits,
    weights_at,
)
from lightning_compress.dynamic.exit_training import ExitTraining, Loss
from lightning_compress.dynamic.head_keeper import HeadKeeper
from lightning_compress.dynamic.inference import CONFIDENCES
from lightning_compress.dynamic.placement import attach_exits, check_head, hang_on, place_exits
from lightning_compress.dynamic.validation_data import validation_batches
from lightning_compress.errors import CompressionError
from lightning_compress.plan import BANK, ExitBank
from lightning_compress.random_states import isolated_random_states
from lightning_compress.registry import resolve
from lightning_compress.surgery import TracingInput
from lightning_compress.training import CompressionCallback
from lightning_compress.training.batches import labels_in
from lightning_compress.training.horizon import length_of_fit


class EarlyExits(HeadKeeper):
    """Trains exit heads beside a LightningModule's own step, calibrates them, and makes them a part of the network.

    The module is not edited: hooks at the exits note features during its own forward, and the exits' losses are added
    to its loss. The heads are trained by an optimizer of ours, and are outside of the module during the fit; at its end
    an edit of the Plan hangs them on the network as ``early_exits``, with thresholds calibrated on the validation data:
    from then on a checkpoint or model file of the module has them, and
    :class:`~lightning_compress.dynamic.ExitInference` runs it. Logged are ``compress/exit0_acc``, ... after each
    validation, and in a test ``compress/relative_macs``: a test of a network with exits lets samples leave early.

    Args:
        exits: names of modules (of the network), or rising shares of its multiply-accumulates at which exits are
            placed.
        weights: of the exits' losses, the network's own having 1: a number for all, one for each, "learned",
            ``{"start": ..., "end": ...}``, or a function of the progress of the fit in [0, 1].
        self_distillation: share of the divergence from the last exit in an exit's loss, in [0, 1].
        temperature: of that divergence.
        frozen: train the heads alone; the network stays bit for bit as it is.
        pool: positions along each dimension that maps are averaged to.
        hidden: neurons of a hidden layer in each head; 0 for none.
        confidence: name of a function in ``dynamic/confidences``.
        loss: of an exit's logits and the labels; None is the cross-entropy.
        labels: from a batch to its labels; None looks for them.
        learning_rate: of the heads; it follows the schedule of the user's first optimizer.
        calibrate: arguments of :func:`~lightning_compress.dynamic.calibrate_exits` for the validation data at the end;
            None leaves all thresholds infinite.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; no such module, or one behind which rows
            cannot leave: before the first step.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[EarlyExits((0.1, 0.4))], logger=False, enable_checkpointing=False)
    """

    order = 60  # after bits: what is calibrated is the network as the others leave it

    def __init__(
        self,
        exits: Sequence[float | str] = (0.1, 0.3, 0.6),
        *,
        weights: Weights = 1.0,
        self_distillation: float = 0.0,
        temperature: float = 2.0,
        frozen: bool = False,
        pool: int = 2,
        hidden: int = 0,
        confidence: str = "margin",
        loss: Loss | None = None,
        labels: Callable[[Any], Tensor] | None = None,
        learning_rate: float = 3e-3,
        calibrate: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.exits = checked_exits(exits)
        check_weights(weights, len(self.exits))
        check_head(pool, hidden)
        check_numbers(
            self_distillation=(self_distillation, 0, 1),
            temperature=(temperature, 1e-3, 1e6),
            learning_rate=(learning_rate, 0, 1e3),
        )
        if not isinstance(confidence, str):
            raise CompressionError(
                "EarlyExits(confidence=...) is stored in files, by name. Give a callable to calibrate_exits and "
                "ExitInference after the fit."
            )
        resolve(confidence, CONFIDENCES)
        for function, what in ((loss, "loss"), (labels, "labels")):
            if function is not None and not callable(function):
                raise CompressionError(f"EarlyExits({what}={function!r}) is no function.")
        self.weights, self._self_distillation, self._temperature = weights, self_distillation, temperature
        self.frozen, self._pool, self._hidden, self.confidence = frozen, pool, hidden, confidence
        self._loss, self._labels = loss or cross_entropy, labels or labels_in
        self._learning_rate, self._calibrate = learning_rate, checked_calibration(calibrate)
        self.calibration: Calibration | None = None
        self._accuracy = ExitAccuracy()
        self._now: Tensor | None = None

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _refuse_callback(self, callback: Callback) -> None:
        super()._refuse_callback(callback)
        if isinstance(callback, EarlyExits) and callback is not self:
            raise CompressionError(f"{self.state_key} and {callback.state_key} are two; give all exits to one of them.")
        if isinstance(callback, CompressionCallback) and callback.edits_shape:
            raise CompressionError(
                f"{type(callback).__name__} takes out neurons that the exit heads read. Cut first, and fit "
                f"{self.state_key} afterwards, in a Trainer of its own."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build the heads, or take them up again."""
        super().on_train_start(trainer, pl_module)
        if self._calibrate is not None and not trainer.enable_validation:
            raise CompressionError(f"{self.state_key}(calibrate=...) needs validation data and a validation_step.")
        if self._horizon is None and (callable(self.weights) or isinstance(self.weights, Mapping)):
            self._horizon = length_of_fit(trainer, self.state_key)
        self._place = self.session.tracing.module
        network = pl_module.get_submodule(self._place)
        learned = isinstance(self.weights, str)
        self._training = ExitTraining(
            network,
            self._known_bank(network) or self._fresh_bank(network),
            learning_rate=self._learning_rate,
            learned=learned,
            detached=self.frozen,
        )
        if learned and self._training.log_variances is not None:
            self._training.log_variances.data = self._training.log_variances.data.to(pl_module.device)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._training.attach(trainer.optimizers, None if scaler is None else scaler.get_scale)
        self._training.load_state_dict(self._optimizer_state)

    def _fresh_bank(self, network: nn.Module) -> ExitBank:
        """New heads, alike in all processes."""
        tracing = self.session.tracing
        call = TracingInput("", tracing.args, tracing.kwargs)
        with isolated_random_states():
            names = self._names(network, call)
            bank = attach_exits(network, call, names, pool=self._pool, hidden=self._hidden, confidence=self.confidence)
        tensors = self.session.from_first(lambda: {key: one.cpu() for key, one in bank.state_dict().items()})
        bank.load_state_dict(tensors)
        shares = ", ".join(
            f"{name!r} at {float(c / bank.costs[-1]):.1%}" for name, c in zip(names, bank.costs, strict=False)
        )
        self.session.write("decision", f"{self.state_key}: exits behind {shares} of the multiply-accumulates")
        return bank

    def _names(self, network: nn.Module, tracing: TracingInput) -> list[str]:
        given = list(self.exits)
        if isinstance(given[0], str):
            prefix = f"{self._place}."
            return [str(name).removeprefix(prefix) if self._place else str(name) for name in given]
        return place_exits(network, tracing, [float(share) for share in given])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what the exits say from here on."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        training = self._running
        training.begin()
        self._now = self._labels_of(batch)
        training.set_rate(_share_of_rate(trainer))
        if self.frozen:
            for part in training.network.modules():
                if part.training:
                    part.training = False

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add the exits' losses to the one that is about to be differentiated."""
        training = self._running
        assert self._now is not None
        losses = training.losses(self._now, self._loss, self._self_distillation, self._temperature)
        if losses is None:
            raise CompressionError(
                f"{self.state_key}: this training_step ran no forward of {self._place or 'the module'!r} before its "
                "loss, so the exits have nothing to learn from."
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = 1.0 if scaler is None else float(scaler.get_scale())
        if pl_module.automatic_optimization:
            factor /= trainer.accumulate_grad_batches
        extra = training.total(loss.clone() / factor, losses, self._weights_now(len(losses))) * factor
        if self.frozen and trainer.world_size == 1:
            loss.detach_().zero_()
        elif self.frozen:
            loss.mul_(0)  # the data-parallel wrapper waits for gradients of all parameters
        loss.add_(extra)

    def _weights_now(self, exits: int) -> list[float]:
        if isinstance(self.weights, str):
            return []
        progress = min(self.session.time / self._horizon, 1.0) if self._horizon else 0.0
        return weights_at(self.weights, progress, exits)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """A frozen network gets no gradient, so neither momentum nor weight decay moves it."""
        if self.frozen:
            heads = {id(parameter) for parameter in self._running.bank.parameters()}
            for parameter in pl_module.parameters():
                if id(parameter) not in heads:
                    parameter.grad = None

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Where a gradient scaler skipped the step, the heads' gradients go with the others."""
        if self._training is not None:
            self._training.zero_grad()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        if self._training is not None:
            self._accuracy = ExitAccuracy(len(self._training.bank.points))

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note what the exits say."""
        if self._training is not None:
            self._training.begin()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers of each exit."""
        if self._training is None:
            return
        self._accuracy.count(self._training.take(), self._labels(batch))
        self._training.active = False

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the accuracy of each exit."""
        if self._training is None or trainer.barebones:
            return
        suffix = "" if self.name is None else f"_{self.name}"
        for exit_, share in enumerate(self._accuracy.shares(trainer, pl_module.device)):
            pl_module.log(f"compress/exit{exit_}_acc{suffix}", share)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the learned weights."""
        training = self._training
        if training is not None and training.log_variances is not None and not trainer.barebones:
            for exit_, value in enumerate(training.log_variances.detach().neg().exp().tolist()[:-1]):
                pl_module.log(f"compress/exit{exit_}_weight", value)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A frozen network may train again."""
        super().on_train_end(trainer, pl_module)
        if self.frozen and self._training is not None:
            self._training.network.train(pl_module.training)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hang the heads on the network, and calibrate them."""
        super().on_fit_end(trainer, pl_module)
        training = self._training
        if training is None:
            raise CompressionError(f"{self.state_key}: there was nothing to train the exits on.")
        if getattr(training.network, BANK, None) is not training.bank:
            bank = training.bank
            training.detach()
            there = hang_on(pl_module, self._place, bank)
            training.bank = there
        if self._calibrate is not None:
            self._calibrate_on_validation(trainer)

    def _calibrate_on_validation(self, trainer: L.Trainer) -> None:
        pairs = validation_batches(trainer, self._labels, self.state_key)
        assert self._calibrate is not None
        self.calibration = calibrate_exits(self._running.network, pairs, **self._calibrate)
        outcome = self.calibration.outcome
        text = (
            f"accuracy {outcome.accuracy:.4f} of {outcome.full_accuracy:.4f} at {outcome.relative_cost:.1%} of the cost"
        )
        self.session.write("finish", f"{self.state_key}: {text}, on the calibration data", callback=self.state_key)

    # -- small ones ---------------------------------------------------------------------------------------------------

    def _labels_of(self, batch: Any) -> Tensor:
        batch = getattr(batch, "batch", batch) if isinstance(batch, tuple) else batch
        labels = self._labels(batch)
        if labels is None:
            raise CompressionError(
                f"{self.state_key} found no labels in a batch of type {type(batch).__name__}. Give labels=, a function "
                "from the batch to its labels."
            )
        return labels


def _share_of_rate(trainer: L.Trainer) -> float:
    """Where the schedule of the first optimizer stands, as a share of where it began."""
    group = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
    begun = float(group.get("initial_lr", 0.0))
    return float(group["lr"]) / begun if begun else 1.0

"""Slimmable networks for any LightningModule: every width learns in every step."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from lightning_compress.dynamic.early_exit import EarlyExits
from lightning_compress.dynamic.exit_arguments import check_numbers
from lightning_compress.dynamic.routing import logits_of
from lightning_compress.dynamic.slimmable import Slimmable, checked_widths, make_slimmable, remember_slimmable
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import CHECKPOINT_KEY
from lightning_compress.surgery import TracingInput
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import CompressionCallback, private
from lightning_compress.training.batches import labels_in
from lightning_compress.values import is_whole

STATE_KEY = "widths"
STATISTICS = ("separate", "recalibrated")


class SlimmableWidths(CompressionCallback):
    """Trains one network at several widths, so that it can run at any of them afterwards.

    The module's own step trains the whole network. Before its backward the network runs again on the same inputs: at
    the smallest width and at some of the others (the sandwich rule), where what the whole network says is the target
    (in-place distillation; Yu and Huang, ICCV 2019, arXiv:1903.05134), or the labels are. BatchNorms have statistics of
    their own at each width. Beside quantization a width uses parts of the whole network's rounded weights, and all
    widths share the ranges of the activations. Afterwards :func:`~lightning_compress.dynamic.set_width` switches, and
    :func:`~lightning_compress.dynamic.export_width` gives an ordinary small network.

    Args:
        widths: in (0, 1]; 1 is always among them.
        sampled: how many of the widths between smallest and whole are trained in a step; None trains all.
        distillation: share of the divergence from the whole network in a width's loss, the rest being the
            cross-entropy, in [0, 1]. 1 needs no labels; in a short fit of a hard task labels do better, for the whole
            network is a poor teacher until it knows something (``recipes/slimmable.md``).
        temperature: of that divergence.
        weight: of the loss of each narrower width, the whole network's being 1.
        statistics: "separate", gathered in training, or "recalibrated", estimated on training batches at the end.
        calibration_batches: for the latter.
        exclude: layers whose outputs always stay.
        labels: from a batch to its labels, needed with ``distillation`` below 1; None looks for them.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range; at the start of the fit: a network without units that can be left out.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[SlimmableWidths((0.5,))], logger=False, enable_checkpointing=False)
    """

    order = 61

    def __init__(
        self,
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        *,
        sampled: int | None = 2,
        distillation: float = 1.0,
        temperature: float = 1.0,
        weight: float = 1.0,
        statistics: str = "separate",
        calibration_batches: int = 20,
        exclude: Sequence[str] = (),
        labels: Callable[[Any], Tensor] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.widths = checked_widths(widths)
        if len(self.widths) < 2:
            raise CompressionError("SlimmableWidths(widths=...) needs a width below 1.")
        check_numbers(distillation=(distillation, 0, 1), temperature=(temperature, 1e-3, 1e6), weight=(weight, 0, 1e6))
        if statistics not in STATISTICS:
            raise CompressionError(f"statistics={statistics!r}. {did_you_mean(str(statistics), STATISTICS)}")
        if not is_whole(calibration_batches) or calibration_batches < 1:
            raise CompressionError(f"calibration_batches={calibration_batches!r}: a whole number from 1.")
        if sampled is not None and not (is_whole(sampled) and sampled >= 0):
            raise CompressionError(f"sampled={sampled!r}: a whole number from 0, or None.")
        refuse_text(exclude, "exclude")
        if labels is not None and not callable(labels):
            raise CompressionError(f"labels={labels!r}: a function from the batch to its labels.")
        self._sampled, self._distillation, self._temperature, self._weight = sampled, distillation, temperature, weight
        self.statistics, self._calibration_batches = statistics, calibration_batches
        self._exclude, self._labels = tuple(exclude), labels or labels_in
        self._slim: Slimmable | None = None
        self._handle: Any = None
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self.start_over()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**vars(self), "_session": None, "_slim": None, "_handle": None, "_fitted": None, "_calls": []}

    def start_over(self) -> None:
        """Forget the statistics: for the first fit, and for a fit of another module."""
        self._pending: dict[str, Any] | None = None
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        self._batch: Any = None
        self._place, self._active = "", False

    # -- state --------------------------------------------------------------------------------------------------------

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the statistics of all widths into the file, beside the Plan."""
        state = self._pending if self._slim is None else self._slim.state_dict()
        checkpoint.setdefault(CHECKPOINT_KEY, {}).setdefault(STATE_KEY, {})[self.state_key] = state

    def read_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them from a file that is being loaded."""
        self._pending = checkpoint.get(CHECKPOINT_KEY, {}).get(STATE_KEY, {}).get(self.state_key)

    def get_compression_state(self) -> dict[str, Any]:
        """The statistics, which a rollback takes back too."""
        return {} if self._slim is None else self._slim.state_dict()

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        if self._slim is not None and state:
            self._slim.load_state_dict(state)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the statistics of another module."""
        super().setup(trainer, pl_module, stage)
        if self._fitted is not None and self._fitted() is not pl_module:
            self.start_over()
        self._fitted = weakref.ref(pl_module)

    def _refuse_callback(self, callback: Callback) -> None:
        super()._refuse_callback(callback)
        if isinstance(callback, CompressionCallback) and callback.edits_shape:
            raise CompressionError(
                f"{type(callback).__name__} takes out neurons that the widths are made of. Cut first, and fit "
                f"{self.state_key} afterwards, in a Trainer of its own."
            )
        if isinstance(callback, SlimmableWidths) and callback is not self:
            raise CompressionError(
                f"{self.state_key} and {callback.state_key} are two; give all widths to one of them."
            )
        if isinstance(callback, EarlyExits):
            raise CompressionError(
                f"{type(callback).__name__} has heads for features of one width. Train {self.state_key} first, then "
                "fit exits on the exported width: export_width(module, 0.5)."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find what hangs together; note the network's calls from here on."""
        super().on_train_start(trainer, pl_module)
        tracing: TracingInput = self.session.tracing
        self._place = tracing.module
        self._slim = make_slimmable(pl_module, tracing, self.widths, self._exclude)
        if self._pending is not None:
            self._slim.load_state_dict(self._pending)
        network = pl_module.get_submodule(self._place)
        self._handle = network.register_forward_hook(_CallHook(self._note), with_kwargs=True)

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._active:
            self._calls.append((args, kwargs, logits_of(output)))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the calls of this step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._calls, self._active = [], True
        self._batch = getattr(batch, "batch", batch) if isinstance(batch, tuple) else batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add the losses of the narrower widths to the one that is about to be differentiated."""
        calls, self._calls, self._active = self._calls, [], False
        if not calls:
            raise CompressionError(
                f"{self.state_key}: this training_step ran no forward of {self._place or 'the module'!r} before its "
                "loss, so the widths have nothing to learn from."
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = self._weight * (1.0 if scaler is None else float(scaler.get_scale()))
        if pl_module.automatic_optimization:
            factor /= trainer.accumulate_grad_batches
        network, slim = pl_module.get_submodule(self._place), self._running
        with ExitStack() as stack:
            seen: dict[str, Tensor] = {}  # a width uses parts of what the whole network sees: its rounded weights
            for callback in self.session.callbacks:
                seen |= stack.enter_context(callback.seen_weights(slim.touched))
            for width in self._widths_of_step(trainer.global_step):
                for args, kwargs, whole in calls:
                    with slim.at(width, seen), trainer.precision_plugin.forward_context():
                        narrow = logits_of(network(*args, **kwargs))
                    loss.add_(self._loss(narrow, whole) * (factor / len(calls)))
        self._active = not pl_module.automatic_optimization

    def _widths_of_step(self, step: int) -> list[float]:
        """The smallest, and some of those between; the same in all processes, and after a resume."""
        smallest, *between = self.widths[:-1]
        if self._sampled is None or self._sampled >= len(between):
            return [smallest, *between]
        order = torch.randperm(len(between), generator=torch.Generator().manual_seed(step))
        return [smallest, *(between[place] for place in order[: self._sampled].tolist())]

    def _loss(self, narrow: Tensor, whole: Tensor) -> Tensor:
        share, temperature = self._distillation, self._temperature
        total = narrow.new_zeros(())
        if share > 0:
            student = (narrow / temperature).log_softmax(dim=1)
            teacher = (whole.detach() / temperature).log_softmax(dim=1)
            total = total + share * temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
        if share < 1:
            labels = self._labels(self._batch)
            if labels is None or len(labels) != len(narrow):
                raise CompressionError(
                    f"{self.state_key} found no label for each row. Give labels=, or distillation=1.0: it needs none."
                )
            total = total + (1 - share) * cross_entropy(narrow, labels)
        return total

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget the batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._calls, self._active, self._batch = [], False, None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All processes get the same statistics."""
        self._share_statistics(trainer)

    def _share_statistics(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            for own in self._running.statistics.values():
                for entries in own.values():
                    for key, value in entries.items():
                        entries[key].copy_(trainer.strategy.broadcast(value))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Estimate the statistics, where that was asked for; let the widths be found."""
        super().on_fit_end(trainer, pl_module)
        if self._slim is None:
            raise CompressionError(f"{self.state_key}: there was nothing to train the widths on.")
        slim = self._running
        if self.statistics == "recalibrated":
            slim.recalibrate(self._some_batches(trainer), self._run_network)
            self._share_statistics(trainer)
        remember_slimmable(pl_module, slim)

    def _some_batches(self, trainer: L.Trainer) -> list[Any]:
        batches: list[Any] = []
        for batch in private.train_loaders(trainer)[0]:
            moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            batches.append(moved)
            if len(batches) == self._calibration_batches:
                break
        return batches

    def _run_network(self, root: Any, batch: Any) -> object:
        batch = batch[0] if isinstance(batch, tuple | list) else batch
        return root.get_submodule(self._place)(batch)

    def release(self) -> None:
        """Take the hook off; statistics are kept for a fit to go on."""
        if self._handle is not None:
            self._handle.remove()
        if self._slim is not None:
            self._pending = self._slim.state_dict()
        self._handle = self._slim = None
        super().release()

    @property
    def _running(self) -> Slimmable:
        assert self._slim is not None
        return self._slim


def load_widths(
    module: L.LightningModule, path: str, tracing: TracingInput, name: str = "SlimmableWidths"
) -> Slimmable:
    """The widths of a module that was loaded from a checkpoint, with the statistics that lie in the file.

    Args:
        module: with the file's weights.
        path: of the checkpoint.
        tracing: a call that runs the module.
        name: the callback's key there.

    Raises:
        CompressionError: the file has none.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = checkpoint.get(CHECKPOINT_KEY, {}).get(STATE_KEY, {}).get(name)
    if state is None:
        raise CompressionError(f"{str(path)!r} has no widths of {name!r}.")
    slim = make_slimmable(module, tracing, state["widths"])
    slim.load_state_dict(copy.deepcopy(state))
    return slim


class _CallHook:
    """Notes a call of the network; a copy of the network has one that rests."""

    def __init__(self, action: Callable[[tuple[Any, ...], dict[str, Any], Any], None] | None = None) -> None:
        self._action = action

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._action is not None:
            self._action(args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CallHook:
        return _CallHook()

    def __reduce__(self) -> tuple[type[_CallHook], tuple[()]]:
        return _CallHook, ()

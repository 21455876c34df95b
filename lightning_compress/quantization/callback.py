"""Fake quantization in training, on any LightningModule."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from math import inf
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelPruning
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.errors import CompressionError
from lightning_compress.plan import CHECKPOINT_KEY
from lightning_compress.quantization.allocation_log import log_allocation
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.budget_in_fit import allocate_in_fit
from lightning_compress.quantization.dataflow import trace_dataflow
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.observation import Observer
from lightning_compress.quantization.scale_training import ScaleTraining
from lightning_compress.quantization.settings import Bits, Settings, in_epochs
from lightning_compress.training import CompressionCallback
from lightning_compress.training.horizon import keep_horizon
from lightning_compress.training.private import batches_done_in_epoch
from lightning_compress.values import is_number

STATE_KEY = "quantizers"


class QuantizationAwareTraining(CompressionCallback):
    """Trains a network that computes as if its weights and activations had few bits.

    The module is not edited: the keys of its ``state_dict``, its Parameters and its optimizer stay the user's own. In a
    forward, weights are read through a rounding, and what layers read is rounded; gradients pass straight through.
    Parameters hold real-valued shadow weights, and so do checkpoints, which load into the plain module with
    ``strict=True``; scales and ranges lie beside them under ``checkpoint["lightning_compress"]``, and a ``test`` with
    this callback finds them there: the metric in a checkpoint's name is that of weights and quantizers in the file.
    When the fit is over, the module's weights become their values on the grid (``finalize``).

    By default activations are unsigned and affine (uint8) and weights signed, symmetric and of a scale for each output
    channel (int8): what processors are fast at. A BatchNorm can be folded into such weights without changing a code.

    Args:
        weight_bits: 2 to 8; None leaves weights alone. {time: bits} changes them in mid-fit, such as {0: 8, 0.5: 4}; an
            int counts epochs, a float is a share of the fit. {pattern: bits} gives each layer its own, a
            :class:`~lightning_compress.quantization.BitBudget` finds them.
        activation_bits: likewise, of what layers read.
        observer: name of a function in ``quantization/observers``, or any callable: the range of activations.
        weight_observer: likewise, for weights.
        scale: "observed"; learned: "lsq", "lsq+", "pact" (bounds of activations; weights as DoReFa); "dorefa".
        granularity: "tensor", "channel" or "group": weights that share a scale.
        group_size: inputs in a group.
        symmetric: of weights and of activations.
        narrow: symmetric grids without the lowest code (at 2 bits: -1, 0, 1).
        edge_bits: at least so many for the first and the last of three or more layers that are quantized, in the order
            in which the module holds them; None treats them as the others.
        add_bits: of the operands of residual adds, where a module returns them; None leaves them in floating point.
        start: when rounding begins: epochs as an int, a share of the fit as a float.
        freeze: when scales and ranges stop changing; None: never.
        freeze_batch_norm: when running statistics of BatchNorms stop changing, and are used; None: never.
        scale_rate: share of itself by which a learned scale changes in one step.
        targets: patterns for names of layers; None: Linear, convolution, attention and recurrent layers.
        exclude: patterns of what to leave alone.
        finalize: put the weights on their grid at the end of the fit.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; layers that cannot be quantized, a tensor
            that another callback quantizes, activations that are not finite: before the first step.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[QuantizationAwareTraining(4, 4)], logger=False, enable_checkpointing=False)
    """

    order = 40

    def __init__(
        self,
        weight_bits: Bits | BitBudget = 8,
        activation_bits: Bits = 8,
        *,
        observer: str | Observer = "moving_average",
        weight_observer: str | Observer = "minmax",
        scale: str = "observed",
        granularity: str = "channel",
        group_size: int | None = None,
        symmetric: Sequence[bool] = (True, False),
        narrow: bool = True,
        edge_bits: int | None = 8,
        add_bits: int | None = 8,
        start: float = 0.0,
        freeze: float | None = None,
        freeze_batch_norm: float | None = None,
        scale_rate: float = 2e-3,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        finalize: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.settings = Settings(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            observer=observer,
            weight_observer=weight_observer,
            scale=scale,
            granularity=granularity,
            group_size=group_size,
            symmetric=symmetric,
            narrow=narrow,
            edge_bits=edge_bits,
            add_bits=None if activation_bits is None else add_bits,
            targets=targets,
            exclude=exclude,
        )
        self._start = _time(start, "start")
        self._freeze = inf if freeze is None else _time(freeze, "freeze")
        self._freeze_norms = inf if freeze_batch_norm is None else _time(freeze_batch_norm, "freeze_batch_norm")
        if not isinstance(scale_rate, float) or not 0 < scale_rate < 1:
            raise CompressionError(f"scale_rate={scale_rate!r} is not a share in (0, 1).")
        if not isinstance(finalize, bool):
            raise CompressionError(f"finalize={finalize!r} is neither True nor False.")
        self._scale_rate, self._finalize = scale_rate, finalize
        self._network: FakeQuantization | None = None
        self._training: ScaleTraining | None = None
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self._stilled: list[_BatchNorm] = []
        self._backward = ExitStack()
        self.start_over()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        gone: dict[str, Any] = {"_session": None, "_network": None, "_training": None, "_fitted": None, "_stilled": []}
        return {**vars(self), **gone, "_backward": ExitStack()}

    def start_over(self) -> None:
        """Forget ranges and scales: for the first fit, and for a fit of another module."""
        self._state: dict[str, Any] | None = None
        self._scales: dict[str, Any] | None = None
        self._horizon: float | None = None
        self._connected = False
        self._last_phase: tuple[bool, ...] = ()

    @property
    def network(self) -> FakeQuantization:
        """The quantizers of the module that is in the Trainer.

        Raises:
            CompressionError: there is none at the moment; :attr:`quantizers` has their numbers still.
        """
        if self._network is None:
            raise CompressionError(f"{self.state_key} is in no Trainer at the moment.")
        return self._network

    @property
    def quantizers(self) -> dict[str, Any]:
        """Bits, scales, zero points and ranges by layer, now or as the last fit left them."""
        state = self._state if self._network is None else self._network.state_dict()
        return copy.deepcopy(state or {})

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The horizon, and the moments of learned scales; the quantizers themselves lie beside the Plan."""
        scales = self._scales if self._training is None else self._training.state_dict()
        return {"horizon": self._horizon, "scales": copy.deepcopy(scales)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._horizon, self._scales = state_dict["horizon"], state_dict["scales"]

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the quantizers into the file."""
        if self._network is not None:
            self._state = {**self._network.state_dict(), "connected": self._connected}
        place = checkpoint.setdefault(CHECKPOINT_KEY, {}).setdefault(STATE_KEY, {})
        place[self.state_key] = copy.deepcopy(self._state)

    def read_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the quantizers from a file that is being loaded, to fit on or to evaluate."""
        state = checkpoint.get(CHECKPOINT_KEY, {}).get(STATE_KEY, {}).get(self.state_key)
        if state is None:
            warnings.warn(
                f"{self.state_key}: this checkpoint was written without it, so it has no scales or ranges. The network "
                "is evaluated as it is; a fit finds them anew.",
                stacklevel=2,
            )
            self.network.enable(False)
        else:
            self._state = state
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self._connected = state["connected"]
        self.network.load_state_dict(state)

    def get_compression_state(self) -> dict[str, Any]:
        """Scales and ranges, which a rollback takes back too."""
        return copy.deepcopy({"network": self.network.state_dict(), "scales": self.state_dict()["scales"]})

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        self.network.load_state_dict(state["network"])
        if self._training is not None and state["scales"] is not None:
            self._training.load_state_dict(state["scales"])

    def seen_weights(self, names: Collection[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Rounded."""
        return self.network.seen_weights(names)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _refuse_callback(self, callback: Callback) -> None:
        if not isinstance(callback, ModelPruning):  # it works with this one
            super()._refuse_callback(callback)
        if self.settings.group_size is not None and getattr(callback, "edits_shape", False):
            raise CompressionError(
                f"{self.state_key}: {type(callback).__name__} takes inputs away, and groups of "
                f"{self.settings.group_size} would no longer divide them. Use granularity='channel'."
            )

    def refuse_conflicts(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A fit without training batches finds no ranges."""
        super().refuse_conflicts(trainer, module)
        if trainer.limit_train_batches == 0:
            self._refuse_empty()

    def _refuse_empty(self) -> None:
        raise CompressionError(
            f"{self.state_key}: there are no training batches to find ranges on. Use calibrate(module, data)."
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach: before the optimizer, the data-parallel wrapper and the restore of weights."""
        super().setup(trainer, pl_module, stage)
        self._last_phase = ()
        if self._network is not None:
            return
        if self._fitted is not None and self._fitted() is not pl_module:
            self.start_over()
        self._fitted = weakref.ref(pl_module)
        network = FakeQuantization(pl_module, self.settings, self.state_key)
        network.attach()
        self._network = network
        if self._state is not None:
            self._restore(self._state)
        self.session.record.followers.append(network)

    def release(self) -> None:
        """Take everything off; scales and ranges are kept for a test to come."""
        self._backward.close()
        if self._training is not None:
            self._scales = copy.deepcopy(self._training.state_dict())
            self._training.detach()
        if self._network is not None:
            self._state = {**self._network.state_dict(), "connected": self._connected}
            self.session.record.followers.remove(self._network)
            self._network.detach()
        self._training = self._network = None
        super().release()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learned scales get their optimizer."""
        super().on_fit_start(trainer, pl_module)
        network = self.network
        for quantizer in network.quantizers.values():
            quantizer.to(pl_module.device)
        self._train_scales(trainer)
        if self._training is not None and self._scales is not None:
            self._training.load_state_dict(self._scales)

    def _train_scales(self, trainer: L.Trainer) -> None:
        """The auxiliary optimizer, anew."""
        if self._training is not None:
            self._training.detach()
        network = self.network
        if network.learned:
            self._training = ScaleTraining(network.learned, self._scale_rate, network.keep_in_range)
            network.on_swap(self._training.swap)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._training.attach(trainer.optimizers, None if scaler is None else scaler.get_scale)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fix the horizon; find out, once, who reads the same tensor."""
        super().on_train_start(trainer, pl_module)
        self._horizon = keep_horizon(trainer, self.state_key, self._horizon)
        start, freeze = (in_epochs(time, self._horizon) for time in (self._start, self._freeze))
        if freeze <= start:
            raise CompressionError(
                f"{self.state_key}: freeze={self._freeze} is no later than start={self._start} in a fit of "
                f"{self._horizon:g} epochs, so no range would ever be found. Freeze later."
            )
        if not self._connected:
            self._connect(trainer)
        self.session.keep_time(batches_done_in_epoch(trainer))  # a resumed fit is where it is
        self._act(trainer)

    def _connect(self, trainer: L.Trainer) -> None:
        network = self.network
        dataflow = trace_dataflow(self.session.module, list(network.inputs), self.session.tracing.run)
        network.connect(dataflow)
        self._connected = True
        self._train_scales(trainer)
        if silent := [*dataflow.silent, *network.unread]:
            self._say(f"what {', '.join(silent)} read stays in floating point: they are not called as layers")
        if dataflow.loose and self.settings.add_bits is not None:
            self._say(f"{dataflow.loose} operands of residual adds, returned by no module, stay in floating point")

    def _say(self, what: str, **data: Any) -> None:
        self.session.write("decision", f"{self.state_key}: {what}", **data)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin, freeze or change bits if it is time, not amid accumulated gradients; once an epoch costly observers
        look at the weights again.
        """
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx == 0:
            self.network.refresh()
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._act(trainer)

    def _act(self, trainer: L.Trainer) -> None:
        assert self._horizon is not None
        time, network = self.session.time + 1e-9, self.network
        begun = time >= in_epochs(self._start, self._horizon)
        frozen = time >= in_epochs(self._freeze, self._horizon)
        if time >= in_epochs(self._freeze_norms, self._horizon):
            for norm in self.session.module.modules():
                if isinstance(norm, _BatchNorm) and norm.training:
                    norm.training = False
                    self._stilled.append(norm)
        if begun and network.budget is not None:
            self._share_out(trainer, network.budget)
        changed = network.set_time(self.session.time, self._horizon)
        if (begun, frozen) != self._last_phase or changed:
            self._last_phase = (begun, frozen)
            network.enable(begun)
            network.freeze(frozen and begun)
            if changed:
                text = f"{self.state_key}: bits changed: {', '.join(changed[:3])}{' ...' * (len(changed) > 3)}"
                self.session.write("decision", text, changed=len(changed))

    def _share_out(self, trainer: L.Trainer, budget: BitBudget) -> None:
        """Process 0 measures and decides for all."""
        module = self.session.module
        allocation = self.session.from_first(lambda: allocate_in_fit(trainer, module, budget, self.settings))
        self.network.share_out(allocation.bits)
        bits = ", ".join(f"{layer} {own}" for layer, own in allocation.bits.items())
        self._say(f"{allocation.mean_bits:.3g} bits a weight by sensitivity: {bits}", **allocation.bits)
        if trainer.is_global_zero:
            log_allocation(trainer.loggers, allocation)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Layers that run again in the backward (activation checkpointing) compute what they did in the forward."""
        self._backward.enter_context(self.network.seen())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """That is over."""
        self._backward.close()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All processes get the same ranges."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.world_size > 1:
            self.network.all_reduce()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See that the ranges are numbers; log the mean bits of weights and activations."""
        for place, quantizer in self.network.activations.items():
            if quantizer.ready and not bool(torch.isfinite(quantizer.scale).all()):
                raise CompressionError(
                    f"{place}: the range of activations is not finite any more; a batch held NaN or infinite values. "
                    "Add lightning_compress.training.NaNGuard, or lower the learning rate."
                )
        if not trainer.barebones:
            suffix = "" if self.name is None else f"_{self.name}"
            for key, value in self.figures().items():
                pl_module.log(f"compress/{key}{suffix}", value, sync_dist=True)

    def figures(self) -> dict[str, float]:
        """Mean bits of weights (of all their entries) and of quantized inputs; 32 before the start."""
        network = self.network
        sizes = {name: network.raw(name).numel() for name in network.weights}
        weights = [(sizes[n], q.grid.bits if q.enabled else 32) for n, q in network.weights.items()]
        inputs = [q.grid.bits if q.enabled else 32 for q in network.inputs.values()]
        figures = {}
        if weights:
            figures["weight_bits"] = sum(size * bits for size, bits in weights) / sum(sizes.values())
        if inputs:
            figures["activation_bits"] = sum(inputs) / len(inputs)
        return figures

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down what was reached; BatchNorms may learn again."""
        super().on_train_end(trainer, pl_module)
        for norm in self._stilled:
            norm.training = pl_module.training
        self._stilled = []
        figures = self.figures()
        text = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in figures.items())
        self.session.write("finish", f"{self.state_key}: {text}", callback=self.state_key, **figures)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last checkpoint: weights on the grid."""
        super().on_fit_end(trainer, pl_module)
        if trainer.num_training_batches == 0:
            self._refuse_empty()
        if self._finalize:
            self.network.finalize_()


def _time(value: float, name: str) -> float:
    if not is_number(value) or not 0 <= value < inf or (isinstance(value, float) and value > 1):
        raise CompressionError(f"{name}={value!r}: give a share of the fit in [0, 1] as a float, or epochs as an int.")
    return value

"""Weights of minus, zero and plus in every forward, real-valued ones behind them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any, Literal

import lightning as L
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.shadow_weights import Edges, ShadowCallback
from lightning_compress.quantization.ternary import Ternarizer, TrainedTernarizer
from lightning_compress.training import AuxiliaryOptimizer
from lightning_compress.values import is_number


class TernaryWeights(ShadowCallback):
    """Trains a network whose weights are seen as minus, zero and plus, each layer with its own values.

    Updates go to real-valued weights. "twn" derives threshold and value from them in every forward (Li, Zhang and Liu,
    "Ternary Weight Networks", 2016); "ttq" trains one value for plus and one for minus (Zhu et al., "Trained Ternary
    Quantization", ICLR 2017), by an optimizer of their own.

    The module is not edited: the keys of its ``state_dict``, its Parameters and its optimizer stay the user's own.
    Parameters hold real-valued shadow weights, and so do checkpoints, which load into the plain module with
    ``strict=True``; trained values lie beside them under ``checkpoint["lightning_compress"]``, and a ``test`` with this
    callback finds them there. When the fit is over, the module's weights become their ternary values (``finalize``).

    Args:
        mode: "twn" or "ttq".
        learning_rate: of the trained values, under Adam.
        edges: "quantize" treats the first and the last layer like the others, "keep" leaves them real-valued.
        targets: patterns for names of layers; None: Linear, convolution, attention and recurrent layers.
        exclude: patterns of what to leave alone.
        finalize: put the ternary values into the weights at the end of the fit.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name, at once; a weight that another callback quantizes,
            before the first step.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[TernaryWeights("ttq")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        mode: Literal["twn", "ttq"] = "twn",
        *,
        learning_rate: float = 1e-3,
        edges: Edges = "quantize",
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        finalize: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(edges=edges, targets=targets, exclude=exclude, finalize=finalize, name=name)
        if mode not in ("twn", "ttq"):
            raise CompressionError(f"mode={mode!r} is unknown: twn or ttq.")
        if not is_number(learning_rate) or not 0 <= learning_rate < inf:
            raise CompressionError(f"learning_rate={learning_rate!r} is not a number of at least 0.")
        self._mode, self._learning_rate = mode, learning_rate
        self._training: AuxiliaryOptimizer | None = None
        self._moments: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**super().__getstate__(), "_training": None}

    def transform_of(self, name: str, weight: nn.Parameter) -> Ternarizer | TrainedTernarizer:
        """Thresholds and values."""
        return Ternarizer() if self._mode == "twn" else TrainedTernarizer(weight)

    def start_over(self) -> None:
        """Forget the trained values."""
        super().start_over()
        self._moments = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The trained values get their optimizer."""
        super().on_fit_start(trainer, pl_module)
        trained = {
            f"{name}.{key}": value
            for name, transform in self._transforms.items()
            for key, value in transform.parameters().items()
        }
        if trained:
            for value in trained.values():
                value.data = value.data.to(pl_module.device)
            self._training = AuxiliaryOptimizer(trained, partial(torch.optim.Adam, lr=self._learning_rate))
            if self._moments is not None:
                self._training.load_state_dict(copy.deepcopy(self._moments))
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._training.attach(trainer.optimizers, None if scaler is None else scaler.get_scale)

    def release(self) -> None:
        """Take everything off; the values and their moments are kept for a fit to come."""
        if self._training is not None:
            self._moments = copy.deepcopy(self._training.state_dict())
            self._training.detach()
        self._training = None
        super().release()

    def state_dict(self) -> dict[str, Any]:
        """The moments of the trained values; the values themselves lie beside the Plan."""
        moments = self._moments if self._training is None else self._training.state_dict()
        return {"training": copy.deepcopy(moments)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._moments = state_dict["training"]

    def get_compression_state(self) -> dict[str, Any]:
        """For a rollback."""
        return {"transforms": super().get_compression_state(), **self.state_dict()}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        super().set_compression_state(state["transforms"])
        if self._training is not None and state["training"] is not None:
            self._training.load_state_dict(copy.deepcopy(state["training"]))

"""What BinaryConnect and TernaryWeights share: real-valued shadow weights, seen in few values in every forward."""

from __future__ import annotations

import copy
import weakref
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import CHECKPOINT_KEY
from lightning_compress.quantization.sound_weights import find_sound_weights
from lightning_compress.quantization.transparent import TransparentWeights
from lightning_compress.surgery import refuse_text
from lightning_compress.training import CompressionCallback

STATE_KEY = "transforms"
Edges = Literal["quantize", "keep"]


class StatefulTransform(Protocol):
    """How one parameter is seen, and what of it a checkpoint keeps."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The weights as a forward reads them; gradients go to ``weight``."""

    def to_state(self) -> dict[str, Any]:
        """Primitives and tensors."""

    def from_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`to_state`."""


class ShadowCallback(CompressionCallback):
    """Shows weights through a transform while the network runs.

    The module is not edited: the keys of its ``state_dict``, its Parameters and its optimizer stay the user's own.
    Parameters hold real-valued shadow weights, and so do checkpoints, which load into the plain module with
    ``strict=True``; a ``test`` with this callback sees the few values again. When the fit is over, the module's weights
    become them (``finalize``).

    Args:
        edges: "quantize" treats the first and the last layer like the others, "keep" leaves them real-valued.
        targets: patterns for names of layers; None: Linear, convolution, attention and recurrent layers.
        exclude: patterns of what to leave alone.
        finalize: put the few values into the weights at the end of the fit.
        name: distinguishes two of them in a Trainer.
    """

    order = 40

    def __init__(
        self, *, edges: Edges, targets: Sequence[str] | None, exclude: Sequence[str], finalize: bool, name: str | None
    ) -> None:
        super().__init__(name)
        if edges not in ("quantize", "keep"):
            raise CompressionError(f"edges={edges!r} is unknown: quantize or keep.")
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        self._edges, self._patterns, self._finalize = edges, (targets, tuple(exclude or ())), finalize
        self._transforms: dict[str, Any] = {}
        self._transparent: TransparentWeights | None = None
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self._state: dict[str, Any] | None = None
        self._handles: list[Any] = []
        self._backward = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        gone: dict[str, Any] = {
            "_session": None,
            "_transparent": None,
            "_fitted": None,
            "_transforms": {},
            "_handles": [],
            "_backward": ExitStack(),
        }
        return {**vars(self), **gone}

    @abstractmethod
    def transform_of(self, name: str, weight: nn.Parameter) -> StatefulTransform:
        """How the parameter is seen."""

    @property
    def names(self) -> list[str]:
        """The parameters that are seen in few values."""
        return list(self._transforms)

    def start_over(self) -> None:
        """Forget what the transforms have learned."""
        self._state = None

    def seen_weights(self, names: Collection[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """In few values."""
        return self.transparent.values(names)

    # -- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach: before the optimizer, the data-parallel wrapper and the restore of weights."""
        super().setup(trainer, pl_module, stage)
        if self._transparent is not None:
            return
        if self._fitted is not None and self._fitted() is not pl_module:
            self.start_over()
        self._fitted = weakref.ref(pl_module)
        weights = self._find(pl_module)
        transparent = TransparentWeights(pl_module, self.state_key)
        self._transforms = {name: self.transform_of(name, weight) for name, weight in weights.items()}
        try:
            for name, transform in self._transforms.items():
                transparent.attach(name, transform)
        except CompressionError:
            transparent.close()
            raise
        self._transparent = transparent
        self.session.record.followers.append(transparent)
        if self._state is not None:
            self._restore(self._state)

    def _find(self, module: L.LightningModule) -> dict[str, nn.Parameter]:
        weights = find_sound_weights(module, *self._patterns)
        if self._edges == "keep":
            inner = list(weights)[1:-1]
            if not inner:
                raise CompressionError(f'{self.state_key}: edges="keep" leaves none of {list(weights)}.')
            return {name: weights[name] for name in inner}
        return weights

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See to the weights after every optimizer step from here on."""
        super().on_fit_start(trainer, pl_module)
        self._handles = [
            optimizer.register_step_post_hook(lambda *_: self.after_step(pl_module)) for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """By now nobody has refused the fit."""
        super().on_train_start(trainer, pl_module)
        self.after_step(pl_module)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Layers that run again in the backward (activation checkpointing) compute what they did in the forward."""
        self._backward.enter_context(self.transparent.seen())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """That is over."""
        self._backward.close()

    def after_step(self, module: L.LightningModule) -> None:
        """What is to be done with the shadow weights after an optimizer step."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down what was reached."""
        super().on_train_end(trainer, pl_module)
        text = f"{self.state_key}: {len(self.names)} weights of few values"
        self.session.write("finish", text, callback=self.state_key, weights=len(self.names))

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last checkpoint: the few values into the weights."""
        super().on_fit_end(trainer, pl_module)
        if self._finalize:
            named = dict(pl_module.named_parameters())
            for name in self.transparent.names:
                if name in named:
                    named[name].copy_(self._transforms[name](named[name]))

    def release(self) -> None:
        """Take everything off; what was learned is kept for a test to come."""
        self._backward.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._transparent is not None:
            self._state = self._to_state()
            self.session.record.followers.remove(self._transparent)
            self._transparent.close()
        self._transparent = None
        super().release()

    @property
    def transparent(self) -> TransparentWeights:
        """Through which the module in the Trainer is seen."""
        if self._transparent is None:
            raise CompressionError(f"{self.state_key} is in no Trainer at the moment.")
        return self._transparent

    # -- state --------------------------------------------------------------------------------------------------------

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what the transforms have learned into the file."""
        state = self._state if self._transparent is None else self._to_state()
        checkpoint.setdefault(CHECKPOINT_KEY, {}).setdefault(STATE_KEY, {})[self.state_key] = copy.deepcopy(state)

    def read_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from a file that is being loaded, to fit on or to evaluate."""
        state = checkpoint.get(CHECKPOINT_KEY, {}).get(STATE_KEY, {}).get(self.state_key)
        if state is not None:
            self._restore(state)

    def get_compression_state(self) -> dict[str, Any]:
        """For a rollback."""
        return copy.deepcopy(self._to_state())

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        self._restore(state)

    def _to_state(self) -> dict[str, Any]:
        return {name: transform.to_state() for name, transform in self._transforms.items()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, part in state.items():
            if name in self._transforms:
                self._transforms[name].from_state(part)

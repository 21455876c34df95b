"""Snapshots: the network, the optimizers and the callbacks before a cut, to go back to if it never recovers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_compress.plan import named_tensors
from lightning_compress.training.optimizers import OptimizerState
from lightning_compress.training.session import Session


@dataclass(frozen=True)
class Snapshot:
    """State before a cut. Schedulers, loaders and random states are not part of it: they never go back.

    Attributes:
        edits: number of edits in the Plan.
        tensors: copies of the module's parameters and buffers.
        optimizers: copies of what the optimizers keep, by parameter name.
        callbacks: what each callback keeps (masks and the like), by its state key.
    """

    edits: int
    tensors: dict[str, Tensor]
    optimizers: OptimizerState
    callbacks: dict[str, dict[str, Any]]

    @classmethod
    def take(cls, session: Session) -> Snapshot:
        """Copy the present state."""
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(session.module).items()}
        callbacks = {callback.state_key: callback.get_compression_state() for callback in session.callbacks}
        return cls(len(session.record.edits), tensors, session.get_optimizer_state(), callbacks)

    def restore(self, session: Session) -> None:
        """Go back: undo the edits made since, then load weights, buffers, optimizer and callback state, bit for bit."""
        session.undo_to(self.edits)
        with torch.no_grad():
            for name, tensor in named_tensors(session.module).items():
                tensor.copy_(self.tensors[name])
        session.set_optimizer_state(self.optimizers)
        for callback in session.callbacks:
            if callback.state_key in self.callbacks:
                callback.set_compression_state(self.callbacks[callback.state_key])

    def to_state(self) -> dict[str, Any]:
        """Primitives and tensors, for a checkpoint."""
        return {
            "edits": self.edits,
            "tensors": self.tensors,
            "optimizers": self.optimizers,
            "callbacks": self.callbacks,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Snapshot:
        """The snapshot that a checkpoint holds."""
        return cls(**state)

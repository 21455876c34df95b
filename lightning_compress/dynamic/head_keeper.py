"""Exit heads that are outside of the module while they are trained: in checkpoints, rollbacks and second fits."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import lightning as L
from torch import nn

from lightning_compress.dynamic.exit_files import STATE_KEY, bank_from_state, state_of_bank
from lightning_compress.dynamic.exit_training import ExitTraining
from lightning_compress.dynamic.routed_test import RoutedTest
from lightning_compress.plan import BANK, CHECKPOINT_KEY, ExitBank


class HeadKeeper(RoutedTest):
    """Keeps the heads of a fit, their moments and its horizon."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._training: ExitTraining | None = None
        self._fitted: weakref.ref[L.LightningModule] | None = None
        self.start_over()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**super().__getstate__(), "_training": None, "_fitted": None}

    def start_over(self) -> None:
        """Forget the heads: for the first fit, and for a fit of another module."""
        self._pending: dict[str, Any] | None = None
        self._optimizer_state: dict[str, Any] = {}
        self._horizon: float | None = None
        self._place = ""

    def state_dict(self) -> dict[str, Any]:
        """The heads, their moments and the horizon."""
        training = self._training
        moments = self._optimizer_state if training is None else training.state_dict()
        return {"horizon": self._horizon, "heads": self._heads(), "optimizer": moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the network is known."""
        self._horizon, self._pending = state_dict["horizon"], state_dict["heads"]
        self._optimizer_state = state_dict["optimizer"]

    def amend_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the heads into the file, beside the Plan: a file of weights alone has them too."""
        place = checkpoint.setdefault(CHECKPOINT_KEY, {}).setdefault(STATE_KEY, {})
        place[self.state_key] = self._heads()

    def get_compression_state(self) -> dict[str, Any]:
        """The heads, which a rollback takes back too."""
        return {} if self._training is None else {"heads": copy.deepcopy(self._training.bank.state_dict())}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back."""
        if self._training is not None and state:
            self._training.bank.load_state_dict(state["heads"])

    def _heads(self) -> dict[str, Any] | None:
        """The edit and the tensors of the heads while they are outside of the module; None once they are in it."""
        training = self._training
        if training is None:
            return self._pending
        if getattr(training.network, BANK, None) is training.bank:
            return None
        return state_of_bank(self._place, training.bank)

    def _known_bank(self, network: nn.Module) -> ExitBank | None:
        """The heads that the network has, or those of the file that is resumed."""
        there = getattr(network, BANK, None)
        if isinstance(there, ExitBank):
            return there
        if self._pending is not None:
            return bank_from_state(self._pending).to(next(network.parameters()).device)
        return None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the heads of another module."""
        super().setup(trainer, pl_module, stage)
        if self._fitted is not None and self._fitted() is not pl_module:
            self.start_over()
        self._fitted = weakref.ref(pl_module)

    def release(self) -> None:
        """Take hooks off; the heads are kept for a fit to go on."""
        if self._training is not None:
            state = self.state_dict()
            self._pending, self._optimizer_state = state["heads"], state["optimizer"]
            self._training.detach()
        self._training = None
        super().release()

    @property
    def _running(self) -> ExitTraining:
        assert self._training is not None
        return self._training

"""A test of a network with exits lets samples leave early."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L

from lightning_compress.dynamic.routed import Tally, routed
from lightning_compress.plan import ExitBank
from lightning_compress.training import CompressionCallback


class RoutedTest(CompressionCallback):
    """Routes samples through the exits in ``trainer.test``, and logs ``compress/relative_macs``: what that took."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._test: tuple[ExitStack, Tally] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running test."""
        return {**vars(self), "_session": None, "_test": None}

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Samples leave early from here on."""
        if any(isinstance(part, ExitBank) for part in pl_module.modules()):
            stack = ExitStack()
            self._test = stack, stack.enter_context(routed(pl_module))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what the test took."""
        if self._test is not None:
            stack, tally = self._test
            stack.close()
            self._test = None
            pl_module.log("compress/relative_macs", tally.relative_macs, sync_dist=True)

    def release(self) -> None:
        """Take the routing off, after a test that failed too."""
        if self._test is not None:
            self._test[0].close()
            self._test = None
        super().release()

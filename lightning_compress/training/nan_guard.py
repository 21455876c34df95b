"""Stops a fit whose loss or weights are no longer finite, before the last good checkpoint is overwritten."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_compress.errors import CompressionError


class NonFiniteError(CompressionError):
    """The loss or a weight became NaN or infinite."""


class NaNGuard(Callback):
    """Looks at the loss before every backward and at the weights before every validation and save.

    Lightning trains on with NaN, in silence, and overwrites the last checkpoint with it. This guard raises
    :class:`NonFiniteError` with epoch, batch and layer instead; what was saved before stays.

    Args:
        every_n_steps: steps between two looks at the loss; on a GPU each look waits for the device.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise CompressionError(f"NaNGuard(every_n_steps={every_n_steps}): at least 1 is needed.")
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at the loss, before it reaches a single weight."""
        batch = trainer.fit_loop.batch_idx
        if batch % self.every_n_steps == 0 and not bool(torch.isfinite(loss).all()):
            self._stop(trainer, pl_module, f"The loss is {loss.detach().flatten()[0].item()}", batch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the weights."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._check_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the weights."""
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights; raising here keeps the file that is about to be replaced."""
        self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if first_non_finite(module) is not None:
            self._stop(trainer, module, "The weights are no longer finite", None)

    def _stop(self, trainer: L.Trainer, module: L.LightningModule, what: str, batch: int | None) -> None:
        name = first_non_finite(module)
        where = f"epoch {trainer.current_epoch}" + ("" if batch is None else f", batch {batch}")
        layer = "all weights are still finite" if name is None else f"the first tensor that is not finite is {name!r}"
        good = next((path for path in map(_last_path, trainer.checkpoint_callbacks) if path), "")
        kept = f" The last good checkpoint is {good}." if good else ""
        raise NonFiniteError(f"{what} in {where}; {layer}.{kept} Lower the learning rate, or clip the gradients.")


def first_non_finite(module: torch.nn.Module) -> str | None:
    """Name of the first parameter or floating-point buffer with a NaN or an infinity; None if there is none.

    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.bias.data.fill_(float("nan"))
    >>> first_non_finite(layer)
    'bias'
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    floating = [(name, tensor.detach()) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    # inf and NaN both survive a maximum norm; one foreach call instead of a scan for each tensor
    norms = torch._foreach_norm([tensor for _, tensor in floating], float("inf")) if floating else []
    for (name, _), norm in zip(floating, norms, strict=True):
        if not bool(torch.isfinite(norm)):
            return name
    return None


def _last_path(callback: Any) -> str:
    return getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")

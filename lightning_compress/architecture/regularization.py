"""Training towards low rank, so that what is factored later loses little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_compress.architecture.layers import find_layers
from lightning_compress.errors import CompressionError
from lightning_compress.surgery.input_statistics import layer_weight
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import CompressionCallback
from lightning_compress.values import is_number


def nuclear_gradient(weight: Tensor, rank: int = 0) -> Tensor:
    """The gradient of the sum of a weight's singular values behind the first ``rank``, as a matrix (outputs, rest).

    Descending it takes the same amount off each of them, so that small ones vanish: the convex stand-in for the rank
    (Fazel, 2002); without the first ``rank`` the truncated nuclear norm (Hu et al., TPAMI 2013).

    >>> nuclear_gradient(torch.diag(torch.tensor([3.0, 2.0])), rank=1)
    tensor([[0., 0.],
            [0., 1.]])
    """
    matrix = weight.detach().flatten(1).float()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    tail = (torch.arange(len(values), device=values.device) >= rank) & (values > 1e-6 * values[0])
    gradient: Tensor = (left * tail) @ right
    return gradient.view_as(weight)


class LowRankRegularization(CompressionCallback):
    """Adds the gradient of the nuclear norm of the layers' weights to the loss's, before :class:`LowRank` acts.

    Under DDP each process adds the same to gradients that are averaged already; clipping comes after it, and the logged
    loss does not contain it.

    Args:
        strength: factor of the norm.
        rank: share of each layer's singular values, the largest, that are left alone, in [0, 1).
        every: steps between two of them; the gradient is scaled to make up for that.
        until: epochs in which it acts; None for the whole fit.
        targets: patterns of layers; None is every layer that can be factored.
        exclude: patterns of layers to leave alone.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range.

    >>> LowRankRegularization(1e-3, until=10).strength
    0.001
    """

    order = 18

    def __init__(
        self,
        strength: float = 1e-3,
        *,
        rank: float = 0.0,
        every: int = 1,
        until: float | None = None,
        targets: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < float("inf"):
            raise CompressionError(f"{self.state_key}: strength={strength!r} is not a factor of 0 or more.")
        if not is_number(rank) or not 0 <= rank < 1:
            raise CompressionError(f"{self.state_key}: rank={rank!r} is not a share in [0, 1).")
        if type(every) is not int or every < 1:
            raise CompressionError(f"{self.state_key}: every={every!r}; a number of steps from 1.")
        if until is not None and not (is_number(until) and until >= 0):
            raise CompressionError(f"{self.state_key}: until={until!r}; a number of epochs, or None.")
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        self.strength, self.rank, self.every, self.until = strength, rank, every, until
        self._targets, self._exclude = targets, tuple(exclude)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient, for the layers that this optimizer steps."""
        over = self.until is not None and self.session.time >= self.until
        if over or self.strength == 0 or trainer.global_step % self.every:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        modules: dict[str, Any] = dict(pl_module.named_modules())
        for name in find_layers(pl_module, self._targets, self._exclude).calls:
            weight = layer_weight(modules[name])
            if weight.grad is not None and id(weight) in own:
                kept = round(self.rank * min(weight.flatten(1).shape))
                gradient = nuclear_gradient(weight, kept).to(weight.grad.dtype)
                weight.grad.add_(gradient, alpha=self.strength * self.every)

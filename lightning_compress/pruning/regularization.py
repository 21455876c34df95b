"""Training towards sparsity, so that what is cut later is already near zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Edit
from lightning_compress.registry import resolve
from lightning_compress.surgery import Group, find_groups
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import CompressionCallback
from lightning_compress.training.horizon import length_of_fit
from lightning_compress.training.schedule import Shape
from lightning_compress.values import is_number

Penalty: TypeAlias = Callable[[nn.Module, Sequence[Group]], Mapping[str, Tensor]]
"""``f(module, groups)``: the gradient of the penalty, by parameter."""
CONSTANT = "constant"


class SparsityRegularization(CompressionCallback):
    """Adds a penalty's gradient to the loss's before each optimizer step; alone, or alongside pruning.

    Under DDP each process adds the same to gradients that are averaged already; gradient clipping comes after it, and
    the logged loss does not contain it.

    Args:
        penalty: name of a function in ``pruning/penalties``: "batch_norm" (L1 on the scales), "group_lasso" (the L2
            norm of all that goes with a neuron), "l1" (single weights); or a callable.
        strength: factor of the penalty at its largest.
        growth: how the strength gets there: "constant" from the first step on, or the name of a schedule's shape
            ("linear", "cubic") by which it grows over the fit (Wang et al. 2021, "Neural Pruning via Growing
            Regularization", arXiv:2012.09243).
        until: share of the fit in which it acts; then it is off.
        exclude: layers whose groups are left alone, or modules with all their layers.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range or an unknown name.

    >>> SparsityRegularization("group_lasso", 1e-4, growth="linear").strength
    0.0001
    """

    order = 35

    def __init__(
        self,
        penalty: str | Penalty = "group_lasso",
        strength: float = 1e-4,
        *,
        growth: str | Shape = CONSTANT,
        until: float = 1.0,
        exclude: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not is_number(strength) or not 0 <= strength < float("inf"):
            raise CompressionError(f"{self.state_key}: strength={strength!r} is not a factor of 0 or more.")
        if not is_number(until) or not 0 < until <= 1:
            raise CompressionError(f"{self.state_key}: until={until!r} is not a share of the fit in (0, 1].")
        refuse_text(exclude, "exclude")
        self._penalty: Penalty = resolve(penalty, "lightning_compress.pruning.penalties")
        self._growth: Shape | None = None
        if growth != CONSTANT:
            self._growth = resolve(growth, "lightning_compress.training.schedules")
        self.strength, self.until = strength, until
        self._exclude = tuple(exclude or ())
        self._horizon: float | None = None
        self._groups: list[Group] | None = None

    def start_over(self) -> None:
        """Forget the length of the fit."""
        self._horizon = None

    def state_dict(self) -> dict[str, Any]:
        """The length of the fit at its first start."""
        return {"horizon": self._horizon}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._horizon = state_dict["horizon"]

    def strength_now(self) -> float:
        """The factor at the present moment of the fit."""
        assert self._horizon is not None
        progress = self.session.time / (self._horizon * self.until)
        if progress >= 1 - 1e-12 and self.until < 1:
            return 0.0
        return self.strength if self._growth is None else self._growth(min(progress, 1.0), self.strength)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fix the length of the fit; find what goes together."""
        super().on_train_start(trainer, pl_module)
        if self._horizon is None:
            self._horizon = length_of_fit(trainer, self.state_key)
        self.session.record.followers.append(self)
        if not self._penalize(pl_module):
            raise CompressionError(f"{self.state_key}: there is nothing in this network that the penalty applies to.")

    def release(self) -> None:
        """Follow no more."""
        if self in self.session.record.followers:
            self.session.record.followers.remove(self)
        self._groups = None
        super().release()

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Groups change with the network's shape."""
        self._groups = None
        return lambda: setattr(self, "_groups", None)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient, for the parameters that this optimizer steps."""
        factor = self.strength_now()
        if factor == 0:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters = dict(pl_module.named_parameters())
        for name, value in self._penalize(pl_module).items():
            parameter = parameters[name]
            if parameter.grad is not None and id(parameter) in own:
                parameter.grad.add_(value.to(parameter.grad.dtype), alpha=factor)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the factor."""
        if not trainer.barebones:
            suffix = "" if self.name is None else f"_{self.name}"
            pl_module.log(f"compress/penalty{suffix}", self.strength_now())

    def _penalize(self, module: nn.Module) -> Mapping[str, Tensor]:
        if self._groups is None:
            self._groups = list(find_groups(module, self.session.tracing, exclude=self._exclude))
        return self._penalty(module, self._groups)

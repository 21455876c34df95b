"""Back to an early point of the fit: weights, optimizer state and learning rate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import inf
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.plan import named_tensors
from lightning_compress.training import Session
from lightning_compress.training.optimizers import OptimizerState
from lightning_compress.values import is_number

INIT = "init"


@dataclass(frozen=True)
class RewindPoint:
    """The state of a fit at one moment, to which what is left of the network goes back after each cut.

    Frankle and Carbin 2019, "The Lottery Ticket Hypothesis" (arXiv:1803.03635), and Renda et al. 2020 for the learning
    rate (arXiv:2003.02389).

    Attributes:
        tensors: parameters and buffers.
        optimizers: what the optimizers keep, by parameter name.
        groups: for each optimizer and group, all but the parameters: learning rate, momentum and the like.
        schedulers: state of the learning rate schedulers.
    """

    tensors: dict[str, Tensor]
    optimizers: OptimizerState
    groups: list[list[dict[str, Any]]]
    schedulers: list[dict[str, Any]]

    @classmethod
    def take(cls, session: Session, trainer: L.Trainer) -> RewindPoint:
        """Copy the present state."""
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(session.module).items()}
        groups = [
            [{key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in o.param_groups]
            for o in trainer.optimizers
        ]
        schedulers = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
        return cls(tensors, session.get_optimizer_state(), groups, schedulers)

    def restore(self, session: Session, trainer: L.Trainer) -> None:
        """Go back; the random states and the data go on."""
        with torch.no_grad():
            for name, tensor in named_tensors(session.module).items():
                tensor.copy_(self.tensors[name])
        session.set_optimizer_state(self.optimizers)
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, former in zip(optimizer.param_groups, groups, strict=True):
                group.update(copy.deepcopy(former))
        for config, former in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(former))

    def to_state(self) -> dict[str, Any]:
        """Primitives and tensors."""
        return dict(vars(self))


def rewind_time(rewind: str | float | None, horizon: float) -> float:
    """The moment to go back to, in epochs.

    >>> rewind_time("init", 10.0), rewind_time(0.1, 10.0), rewind_time(2, 10.0)
    (0.0, 1.0, 2.0)
    """
    if rewind in (INIT, None):
        return 0.0
    assert isinstance(rewind, int | float)
    return rewind * horizon if isinstance(rewind, float) else float(rewind)


def check_rewind(rewind: Any) -> None:
    """Refuse what is no moment.

    Raises:
        CompressionError: neither "init" nor a time.
    """
    if rewind in (INIT, None) and not isinstance(rewind, bool):
        return
    wrong = not is_number(rewind) or not 0 <= rewind < inf
    if wrong or (isinstance(rewind, float) and rewind > 1):
        raise CompressionError(
            f'rewind={rewind!r}: give "init", epochs as an int, or a share of the fit in [0, 1] as a float.'
        )

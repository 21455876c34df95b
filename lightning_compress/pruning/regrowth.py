"""Weights that come back: dynamic sparse training, and dense-sparse-dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import cos, inf, pi
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.pruning.evidence import NEURONS_ONLY, Criterion, needs_of
from lightning_compress.pruning.threshold import keep_top
from lightning_compress.registry import names, resolve
from lightning_compress.values import is_number

METHODS = {"rigl": "gradient", "set": "random"}
"""Names from the literature -> criterion by which masked weights come back."""
DENSE = "dense"
_CRITERIA = "lightning_compress.pruning.criteria"


@dataclass(frozen=True)
class Regrowth:
    """Every so often the least important weights go and as many others come back, in each tensor.

    They come back as zeros, with optimizer moments of zero. The number falls along a cosine.

    Attributes:
        grow: "rigl" (the largest mean gradient; Evci et al. 2020, arXiv:1911.11134), "set" (at random; Mocanu et al.
            2018, arXiv:1707.04780), any criterion for weights, or a callable. "dense": at ``end`` all come back, for
            good (dense-sparse-dense; Han et al. 2017, arXiv:1607.04381).
        share: of the weights that are left that are exchanged the first time.
        every: epochs between exchanges.
        end: when the last is made, an int in epochs, a float in [0, 1] as a share of the fit.

    Raises:
        CompressionError: a value out of range or an unknown name.

    >>> Regrowth("rigl").share_at(0.0, 10.0)
    0.3
    """

    grow: str | Criterion = "rigl"
    share: float = 0.3
    every: float = 1.0
    end: float = 0.75

    def __post_init__(self) -> None:
        if isinstance(self.grow, str) and self.grow not in METHODS and self.grow not in (DENSE, *names(_CRITERIA)):
            known = (*METHODS, DENSE, *names(_CRITERIA))
            raise CompressionError(f"Regrowth(grow={self.grow!r}). {did_you_mean(self.grow, known)}")
        if not is_number(self.share) or not 0 < self.share < 1:
            raise CompressionError(f"Regrowth(share={self.share!r}): a share in (0, 1) is needed.")
        if not is_number(self.every) or not 0 < self.every < inf:
            raise CompressionError(f"Regrowth(every={self.every!r}): epochs between exchanges must be above 0.")
        if not is_number(self.end) or not 0 <= self.end < inf or (isinstance(self.end, float) and self.end > 1):
            raise CompressionError(f"Regrowth(end={self.end!r}): a share of the fit in [0, 1], or epochs as an int.")
        if self.criterion is not None and needs_of(self.criterion) & (NEURONS_ONLY | {"moments"}):
            raise CompressionError(f"Regrowth(grow={self.grow!r}): it cannot judge weights that are zero.")

    @classmethod
    def of(cls, value: Regrowth | str | Criterion | Mapping[str, Any]) -> Regrowth:
        """``value`` itself, or the Regrowth that a name, a callable or a mapping of its fields stands for.

        >>> Regrowth.of({"grow": "set", "every": 2}).every
        2
        """
        if isinstance(value, Regrowth):
            return value
        if isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            for name in value:
                if name not in known:
                    raise CompressionError(f"regrow has no field {name!r}. {did_you_mean(str(name), known)}")
            return cls(**value)
        return cls(value)

    @property
    def criterion(self) -> Criterion | None:
        """By which weights come back; None where all do."""
        if self.grow == DENSE:
            return None
        name = METHODS.get(self.grow, self.grow) if isinstance(self.grow, str) else self.grow
        found: Criterion = resolve(name, _CRITERIA)
        return found

    def end_in_epochs(self, horizon: float) -> float:
        """:attr:`end` in epochs of a fit that lasts ``horizon``."""
        return self.end * horizon if isinstance(self.end, float) else float(self.end)

    def share_at(self, time: float, horizon: float) -> float:
        """Share of the weights left that are exchanged at ``time``, in epochs."""
        end = self.end_in_epochs(horizon)
        return self.share / 2 * (1 + cos(pi * min(time / end, 1.0))) if end > 0 else 0.0


def exchange(keep: Tensor, worth: Tensor, growth: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The mask after an exchange, and which entries came back; what goes does not come back at once.

    Args:
        keep: the mask so far.
        worth: of the weights that are left; the lowest go.
        growth: of the weights that are masked; the highest come back.
        share: of those that are left.

    >>> keep = torch.tensor([True, True, False, False])
    >>> exchange(keep, torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 3.0]), 0.5)[0].tolist()
    [False, True, False, True]
    """
    alive = int(keep.sum())
    number = min(round(share * alive), alive - 1, keep.numel() - alive)
    if number <= 0:
        return keep, torch.zeros_like(keep)
    gone = ~keep_top(worth.masked_fill(~keep, torch.inf), number)
    back = keep_top(growth.masked_fill(keep, -torch.inf), keep.numel() - number)
    return keep & ~gone | back, back


def forget_moments(optimizers: Sequence[Optimizer], back: Mapping[Parameter, Tensor]) -> None:
    """Zero what the optimizers keep of the entries that came back."""
    for optimizer in optimizers:
        for parameter, entries in back.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[entries.to(value.device)] = 0

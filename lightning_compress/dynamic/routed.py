"""A network whose own forward lets samples leave early: in anybody's test step, for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.dynamic.inference import Confidence, ExitInference


class Tally:
    """What was computed in a block.

    Attributes:
        exits: (exits + 1,) int64: how many samples left where.
        macs: multiply-accumulates, heads included.
        full_macs: what the plain network would have taken.
    """

    def __init__(self, exits: int) -> None:
        self.exits = torch.zeros(exits + 1, dtype=torch.int64)
        self.macs = self.full_macs = 0.0

    @property
    def relative_macs(self) -> float:
        """Share of the plain network's; NaN before the first batch."""
        return self.macs / self.full_macs if self.full_macs else float("nan")


@contextmanager
def routed(
    module: nn.Module, *, thresholds: Tensor | None = None, confidence: str | Confidence | None = None
) -> Iterator[Tally]:
    """Inside, calling ``module`` in evaluation lets samples leave early, whoever calls it: a test step, a metric.

    The network returns logits as ever. In training mode it computes everything.

    Args:
        module: a network with exits, or what contains it.
        thresholds: see :class:`ExitInference`.
        confidence: likewise.

    Yields:
        The tally of what is computed inside.
    """
    inference = ExitInference(module, thresholds=thresholds, confidence=confidence)
    network = inference.network
    tally = Tally(len(inference.bank.points))
    former = network.__dict__.get("forward")
    running = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if running or network.training or torch.is_grad_enabled():
            own = former or type(network).forward.__get__(network)
            return own(*args, **kwargs)
        running = True
        try:
            found = inference.predict(*args, **kwargs)
        finally:
            running = False
        tally.exits += torch.bincount(found.exits.cpu(), minlength=len(tally.exits))
        tally.macs, tally.full_macs = tally.macs + found.macs, tally.full_macs + found.full_macs
        return found.logits

    network.__dict__["forward"] = forward
    try:
        yield tally
    finally:
        del network.__dict__["forward"]
        if former is not None:
            network.__dict__["forward"] = former

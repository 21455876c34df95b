"""A network whose own forward lets samples leave early: in anybody's test step, for the time of a block."""

from __future__ import annotations

import copy
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
    network, former = inference.network, inference.network.__dict__.get("forward")
    forward = RoutedForward(network, former, inference)
    network.__dict__["forward"] = forward
    try:
        yield forward.tally
    finally:
        del network.__dict__["forward"]
        if former is not None:
            network.__dict__["forward"] = former


class RoutedForward:
    """Stands on a network in the place of its forward; in a copy of the network it is the network's own."""

    def __init__(self, network: nn.Module, former: Any = None, inference: ExitInference | None = None) -> None:
        self._network, self._former, self._inference = network, former, inference
        self._running = False
        self.tally = Tally(0 if inference is None else len(inference.bank.points))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        inference, network = self._inference, self._network
        if inference is None or self._running or network.training or torch.is_grad_enabled():
            own = self._former or type(network).forward.__get__(network)
            return own(*args, **kwargs)
        self._running = True
        try:
            found = inference.predict(*args, **kwargs)
        finally:
            self._running = False
        tally = self.tally
        tally.exits += torch.bincount(found.exits.cpu(), minlength=len(tally.exits))
        tally.macs, tally.full_macs = tally.macs + found.macs, tally.full_macs + found.full_macs
        return found.logits

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutedForward:
        return RoutedForward(memo.get(id(self._network), self._network), copy.deepcopy(self._former, memo))

    def __reduce__(self) -> tuple[type[RoutedForward], tuple[Any, ...]]:
        return RoutedForward, (self._network, self._former)

"""Inference with early exits: per-sample compaction in any batch, honest accounting, anytime and budgeted modes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.dynamic.placement import head_macs, prove_exits, rows_of
from lightning_compress.dynamic.routing import (
    Decide,
    Route,
    find_bank,
    hooked,
    logits_of,
    owner_of_bank,
    points_of,
    run_route,
)
from lightning_compress.errors import CompressionError
from lightning_compress.registry import resolve
from lightning_compress.surgery import TracingInput, evaluation_mode
from lightning_compress.values import is_number

CONFIDENCES = "lightning_compress.dynamic.confidences"
Confidence = Callable[[Tensor, Tensor], Tensor]
"""Gets logits (N, classes) and the earlier exits' classes (N, exits before); returns scores (N,), high where sure."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network with exits says of a batch.

    Attributes:
        logits: (N, classes).
        exits: (N,) int64, where each row left; the number of exits for those that went to the end.
        macs: of the whole batch, heads included: what was computed, no more and no less.
        full_macs: of the same batch through the network without exits.
    """

    logits: Tensor
    exits: Tensor
    macs: float
    full_macs: float

    @property
    def classes(self) -> Tensor:
        """(N,) int64."""
        return self.logits.argmax(dim=1)

    @property
    def relative_macs(self) -> float:
        """Share of the plain network's multiply-accumulates; NaN of an empty batch."""
        return self.macs / self.full_macs if self.full_macs else float("nan")


class ExitInference:
    """A network whose easy samples leave early.

    At each exit a hook asks the head, sends away the rows that are sure, and passes on the others only. The network's
    own forward is used, whatever it does; that its rows may leave is proved on a copy at the first batch. The module is
    put back as it was after each call.

    Args:
        module: a network with exits (see :class:`~lightning_compress.dynamic.EarlyExits`), or what contains it.
        thresholds: (exits,); None takes those of the last calibration.
        confidence: name of a function in ``dynamic/confidences``, or a callable; None takes the one that the exits were
            calibrated for.
        check: prove at the first batch that rows can leave.

    Raises:
        CompressionError: the module has no exits; a wrong number of thresholds; an unknown confidence.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        thresholds: Tensor | Sequence[float] | None = None,
        confidence: str | Confidence | None = None,
        check: bool = True,
    ) -> None:
        self.bank, self.network = find_bank(module), owner_of_bank(module)
        self.confidence: Confidence = resolve(confidence or self.bank.confidence, CONFIDENCES)
        given = self.bank.thresholds if thresholds is None else _numbers(thresholds)
        if given.shape != (len(self.bank.points),) or bool(given.isnan().any()):
            raise CompressionError(f"thresholds={thresholds!r}: a number for each of {len(self.bank.points)} exits.")
        self.thresholds: list[float] = given.tolist()
        self._needs_history = self.confidence.__name__ == "patience" or not _is_ours(self.confidence)
        self._unproved = check
        self._points = points_of(self.network, self.bank)
        on = [number for number, one in enumerate(self.thresholds) if one < float("inf") or self._needs_history]
        self._active = {number: self._points[number] for number in on}
        self._heads = [head_macs(one) for one in self.bank.heads]
        self._all_costs: list[float] = self.bank.costs.tolist()

    @property
    def plain_cost(self) -> float:
        """Multiply-accumulates of one sample through the network without exits."""
        return self._all_costs[-1] - sum(self._heads)

    def predict(self, *args: Any, **kwargs: Any) -> Predictions:
        """Answers for a batch; the arguments are those of the network.

        Each row leaves at the first exit whose confidence reaches the threshold.
        """
        return self._run(args, kwargs, self._by_thresholds(), all_=False)

    __call__ = predict

    def anytime(
        self,
        *args: Any,
        macs: float | None = None,
        seconds: float | None = None,
        early: bool = True,
        **kwargs: Any,
    ) -> Predictions:
        """Answers within a limit for each sample: whoever is still there when it is reached leaves at that exit.

        Args:
            args: of the network.
            macs: multiply-accumulates of one sample, at most.
            seconds: of wall time since the call; looked at when an exit is reached.
            early: sure samples leave earlier still.
            kwargs: of the network.

        Raises:
            CompressionError: no limit, or one that not even the first exit keeps.
        """
        if (macs is None) == (seconds is None):
            raise CompressionError("anytime needs a limit: macs= or seconds=, one of them.")
        if not all(one is None or (is_number(one) and one >= 0) for one in (macs, seconds)):
            raise CompressionError(f"anytime(macs={macs!r}, seconds={seconds!r}): a number of 0 or more.")
        decide = self._by_thresholds() if early else _nobody
        if macs is not None:
            within = [number for number, cost in enumerate(self.bank.costs.tolist()) if cost <= macs]
            if not within:
                raise CompressionError(
                    f"macs={macs:,.6g}: the first exit takes {float(self.bank.costs[0]):,.6g} already."
                )
            stop = within[-1] if within[-1] < len(self.bank.points) else None
            return self._run(args, kwargs, decide, stop)
        assert seconds is not None
        end = time.perf_counter() + seconds
        own = decide

        def until(exit_: int, logits: Tensor, rows: Tensor) -> Tensor | bool:
            if time.perf_counter() >= end:
                return True if len(rows) == 1 else torch.ones_like(rows, dtype=torch.bool)
            return own(exit_, logits, rows)

        return self._run(args, kwargs, until)

    def budgeted(self, *args: Any, macs: float, shares: Sequence[float] | None = None, **kwargs: Any) -> Predictions:
        """Answers for a batch within a mean budget, kept exactly: at each exit the surest rows leave.

        Budgeted batch classification, Huang et al., "Multi-Scale Dense Networks", ICLR 2018, arXiv:1703.09844. How many
        leave where follows from ``shares``; if these cost too much, more leave early.

        Args:
            args: of the network.
            macs: mean multiply-accumulates of a sample, at most.
            shares: of the rows that leave at each exit and at the end; None takes those of the last calibration, or a
                falling sequence.
            kwargs: of the network.

        Raises:
            CompressionError: a budget below the cost of the first exit.
        """
        costs = self.bank.costs.tolist()
        if not is_number(macs) or macs != macs:
            raise CompressionError(f"budgeted(macs={macs!r}): a number of multiply-accumulates.")
        number = rows_of(TracingInput("", args, kwargs))
        quotas = _quotas(costs, macs, number, self._shares(shares))

        def decide(exit_: int, logits: Tensor, rows: Tensor) -> Tensor | bool:
            scores = scores_of(self.confidence, logits, history(exit_, logits, rows))
            leaves = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
            leaves[scores.topk(min(quotas[exit_], len(rows))).indices] = True
            return leaves

        history = _History(number)
        return self._run(args, kwargs, decide)

    def plain(self, *args: Any, **kwargs: Any) -> Predictions:
        """Answers of the whole network: nobody leaves, and no head is asked."""
        with torch.inference_mode(), evaluation_mode(self.network):
            logits = logits_of(self.network(*args, **kwargs))
        cost = self.plain_cost * len(logits)
        exits = torch.full((len(logits),), len(self.bank.points), device=logits.device)
        return Predictions(logits, exits, cost, cost)

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], decide: Decide, stop: int | None = None, all_: bool = True
    ) -> Predictions:
        call = TracingInput("", args, kwargs)
        if not rows_of(call):
            return self.plain(*args, **kwargs)
        if self._unproved:
            prove_exits(self.network, self.bank, call)
            self._unproved = False
        route = Route(self.bank, decide, stop)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.network.training:
                stack.enter_context(evaluation_mode(self.network))
            asked = self._points if all_ else self._active
            stack.enter_context(hooked(asked, route.at_exit))
            logits, exits = run_route(self.network, route, args, kwargs)
        costs = self._costs(asked)
        spent = sum(costs[exit_] * len(part) for exit_, _, part in route.parts)
        return Predictions(logits, exits, spent, self.plain_cost * len(logits))

    def _costs(self, asked: Mapping[int, nn.Module]) -> list[float]:
        """Of a sample that leaves at each exit or at the end, where only some heads are asked."""
        costs, spared = [], 0.0
        for exit_, cost in enumerate(self._all_costs):
            if exit_ < len(self._heads) and exit_ not in asked:
                spared += self._heads[exit_]
            costs.append(cost - spared)
        return costs

    def _by_thresholds(self) -> Decide:
        history = _History()

        def decide(exit_: int, logits: Tensor, rows: Tensor) -> Tensor | bool:
            threshold = self.thresholds[exit_]
            earlier = history(exit_, logits, rows) if self._needs_history else rows.new_empty(len(rows), 0)
            if threshold == float("inf"):
                return False if len(rows) == 1 else torch.zeros_like(rows, dtype=torch.bool)
            scores = scores_of(self.confidence, logits, earlier)
            return float(scores[0]) >= threshold if len(rows) == 1 else scores >= threshold

        return decide

    def _shares(self, given: Sequence[float] | None) -> list[float]:
        exits = len(self.bank.points)
        calibrated = self.bank.shares.tolist()
        shares = list(given) if given is not None else calibrated
        if given is None and not any(shares):
            shares = [0.5**number for number in range(exits + 1)]
        if len(shares) != exits + 1 or min(shares) < 0 or sum(shares) <= 0:
            raise CompressionError(f"shares={shares}: one for each of {exits} exits and for the end, none negative.")
        return [share / sum(shares) for share in shares]


class _History:
    """The classes that earlier exits gave, by row."""

    def __init__(self, number: int = 0) -> None:
        self._classes: Tensor | None = None

    def __call__(self, exit_: int, logits: Tensor, rows: Tensor) -> Tensor:
        """(N, exits before) of these rows; remembers what this exit says."""
        if self._classes is None:
            self._classes = torch.full((int(rows.max()) + 1, 0), -1, device=rows.device)
        grown = torch.full((len(self._classes), exit_ + 1), -1, device=rows.device)
        grown[:, : self._classes.shape[1]] = self._classes
        grown[rows, exit_] = logits.argmax(dim=1)
        self._classes = grown
        return grown[rows, :exit_]


def scores_of(confidence: Confidence, logits: Tensor, earlier: Tensor) -> Tensor:
    """What a confidence says of each row.

    Raises:
        CompressionError: not one number for each.
    """
    scores = confidence(logits, earlier)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise CompressionError(
            f"The confidence gives {shape} for logits {tuple(logits.shape)}: one score for each row."
        )
    return scores


def _numbers(thresholds: Any) -> Tensor:
    try:
        return torch.as_tensor(thresholds, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompressionError(f"thresholds={thresholds!r} are no numbers.") from error


def _nobody(exit_: int, logits: Tensor, rows: Tensor) -> Tensor | bool:
    return False if len(rows) == 1 else torch.zeros_like(rows, dtype=torch.bool)


def _is_ours(function: Confidence) -> bool:
    return getattr(function, "__module__", "").startswith(CONFIDENCES)


def _quotas(costs: Sequence[float], macs: float, number: int, shares: Sequence[float]) -> list[int]:
    """How many of ``number`` rows leave at each exit and at the end, within a mean of ``macs``: shares are mixed with
    leaving at the first exit until they fit.
    """
    if macs < costs[0]:
        raise CompressionError(f"A mean of {macs:,.6g}: the first exit takes {costs[0]:,.6g} already.")
    mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    mix = 1.0 if mean <= macs else (macs - costs[0]) / (mean - costs[0])
    wanted = [mix * share for share in shares]
    quotas = [int(share * number) for share in wanted]
    quotas[0] += number - sum(quotas)  # what rounding leaves over goes out first, which is cheapest
    return quotas

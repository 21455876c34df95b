"""Exits calibrated on held-out data: for a drop of accuracy, for a cost, for milliseconds, or with a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.dynamic.guarantee import Guarantee, guaranteed_thresholds
from lightning_compress.dynamic.inference import CONFIDENCES, Confidence, scores_of
from lightning_compress.dynamic.placement import head_macs, rows_of, stops_at
from lightning_compress.dynamic.routing import all_exits, find_bank, owner_of_bank
from lightning_compress.dynamic.thresholds import ExitRecord, Outcome, search_for_cost, search_for_drop
from lightning_compress.errors import CompressionError
from lightning_compress.measure import compare_latency
from lightning_compress.registry import resolve
from lightning_compress.surgery import TracingInput, evaluation_mode
from lightning_compress.values import is_number


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibration has found.

    Attributes:
        thresholds: (exits,); infinite where an exit is not used.
        outcome: on the samples that it was found on (with a promise: on those that tested it).
        guarantee: the promise, if one was asked for.
    """

    thresholds: Tensor
    outcome: Outcome
    guarantee: Guarantee | None = None


def calibrate_exits(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    drop: float | None = None,
    macs: float | None = None,
    milliseconds: float | None = None,
    risk: float | None = None,
    delta: float = 0.1,
    tuning: Iterable[Any] | None = None,
    confidence: str | Confidence | None = None,
    latencies: Tensor | None = None,
) -> Calibration:
    """Choose the thresholds of a network's exits on held-out data, and store them in the network.

    Exactly one target: ``drop`` or ``macs`` or ``milliseconds`` or ``risk``. The first three are met on these very
    samples and promise nothing about others; ``risk`` does.

    Args:
        module: a network with exits, or what contains it; only its thresholds change.
        batches: of (inputs, labels), not used for training.
        drop: of accuracy, at most: 0.01 is one point. The cheapest thresholds are taken.
        macs: mean multiply-accumulates of a sample as a share of the plain network's, heads included, at most. The
            most accurate thresholds are taken.
        milliseconds: mean time of a sample, at most, by ``latencies``.
        risk: the largest drop of accuracy that may happen with a probability above ``delta``; see
            :func:`~lightning_compress.dynamic.guarantee.guaranteed_thresholds`.
        delta: see there.
        tuning: other held-out batches that make the rules to be tested; None takes a part of ``batches``.
        confidence: name or callable; None takes the network's own. A name is stored.
        latencies: (exits + 1,) milliseconds of a sample that leaves there, as :func:`exit_latencies` measures.

    Raises:
        CompressionError: not one target, a value out of its range, no data, or a cost out of reach.
    """
    check_target(drop=drop, macs=macs, milliseconds=milliseconds, risk=risk, delta=delta, latencies=latencies)
    bank = find_bank(module)
    record = collect(module, batches, confidence=confidence, costs=latencies if milliseconds is not None else None)
    guarantee = None
    if drop is not None:
        thresholds = search_for_drop(record, drop)
    elif risk is not None:
        tuned = None if tuning is None else collect(module, tuning, confidence=confidence)
        guarantee = guaranteed_thresholds(record, risk=risk, delta=delta, tuning=tuned)
        thresholds = guarantee.thresholds
    else:
        plain = float(bank.costs[-1]) - sum(head_macs(one) for one in bank.heads)
        thresholds = search_for_cost(record, macs * plain if macs is not None else milliseconds or 0.0)
    outcome = record.evaluate(thresholds) if guarantee is None else guarantee.outcome
    with torch.no_grad():
        bank.thresholds.copy_(thresholds)
        bank.shares.copy_(outcome.shares)
    if isinstance(confidence, str):
        bank.confidence = confidence
    return Calibration(thresholds, outcome, guarantee)


def check_target(
    *,
    drop: Any = None,
    macs: Any = None,
    milliseconds: Any = None,
    risk: Any = None,
    delta: Any = 0.1,
    latencies: Tensor | None = None,
) -> None:
    """Refuse what :func:`calibrate_exits` cannot aim at.

    Raises:
        CompressionError: not one target, or a value out of its range.

    >>> check_target(drop=1)
    Traceback (most recent call last):
    lightning_compress.errors.CompressionError: drop=1: a share of accuracy in [0, 1); 0.01 is one point.
    """
    targets = {"drop": drop, "macs": macs, "milliseconds": milliseconds, "risk": risk}
    if sum(value is not None for value in targets.values()) != 1:
        raise CompressionError(f"calibrate_exits needs one of {', '.join(targets)}, not {targets}.")
    if drop is not None and not (is_number(drop) and 0 <= drop < 1):
        raise CompressionError(f"drop={drop!r}: a share of accuracy in [0, 1); 0.01 is one point.")
    for name, value in (("macs", macs), ("milliseconds", milliseconds)):
        if value is not None and not (is_number(value) and 0 < value < inf):
            raise CompressionError(f"{name}={value!r}: a number above 0.")
    for name, value in (("risk", risk), ("delta", delta)):
        if value is not None and not (is_number(value) and 0 < value < 1):
            raise CompressionError(f"{name}={value!r}: in (0, 1).")
    if milliseconds is not None and not isinstance(latencies, Tensor):
        raise CompressionError("milliseconds= needs latencies=exit_latencies(module, example).")


def collect(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    confidence: str | Confidence | None = None,
    costs: Tensor | None = None,
) -> ExitRecord:
    """What all exits say of labelled batches.

    Args:
        module: a network with exits.
        batches: of (inputs, labels).
        confidence: see :class:`~lightning_compress.dynamic.ExitInference`.
        costs: (exits + 1,) in another unit than multiply-accumulates.

    Raises:
        CompressionError: no batches, or batches without labels.
    """
    bank, network = find_bank(module), owner_of_bank(module)
    function: Confidence = resolve(confidence or bank.confidence, CONFIDENCES)
    device = next(network.parameters()).device
    scores, correct = [], []
    with torch.no_grad(), evaluation_mode(network):
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[1], Tensor):
                raise CompressionError("Exits are calibrated on batches of (inputs, labels).")
            if batch[1].shape != (len(batch[0]),):
                raise CompressionError(f"Labels {tuple(batch[1].shape)} of {len(batch[0])} samples: a class for each.")
            if not len(batch[1]):
                continue
            answers = all_exits(network, bank, (batch[0].to(device),), {})
            classes = torch.stack([one.argmax(dim=1) for one in answers])
            columns = [scores_of(function, one, classes[:exit_].T) for exit_, one in enumerate(answers[:-1])]
            scores.append(torch.stack([one.float() for one in columns]).cpu())
            correct.append((classes == batch[1].to(device)).cpu())
    if not scores:
        raise CompressionError("There are no samples to calibrate the exits on.")
    costs = bank.costs.cpu() if costs is None else costs
    return ExitRecord(torch.cat(scores, dim=1), torch.cat(correct, dim=1), costs)


def exit_latencies(module: nn.Module, example: Tensor, *, rounds: int = 30) -> Tensor:
    """Milliseconds of a sample that leaves at each exit, and of one that goes to the end: (exits + 1,), never falling.

    Measured, interleaved, on the batch ``example``, and divided by its size; heads included.

    Args:
        module: a network with exits.
        example: a batch of inputs.
        rounds: samples of each.

    Raises:
        CompressionError: an empty batch.
    """
    if not rows_of(TracingInput("", (example,), {})):
        raise CompressionError("exit_latencies needs a batch of samples; this one is empty.")
    bank, network = find_bank(module), owner_of_bank(module)
    exits = range(len(bank.points) + 1)
    with torch.inference_mode(), evaluation_mode(network):
        calls = {f"exit {exit_}": partial(stops_at(network, bank, exit_), example) for exit_ in exits}
        measured = compare_latency(calls, rounds=rounds, clock="wall")
    times = [measured[f"exit {exit_}"].milliseconds.median / len(example) for exit_ in exits]
    return torch.tensor(times, dtype=torch.float64).cummax(0).values

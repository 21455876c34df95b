"""Points of a sweep: runs that differ in their seed together, which of them no other beats, and which one to take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.report.intervals import corrected_interval

COSTS = {
    "file_bytes": "bytes of the file",
    "dense_bytes": "bytes, dense",
    "macs": "MACs",
    "parameters": "parameters",
    "nonzero_parameters": "parameters not zero",
    "latency": "latency, ms",
}
"""What a network costs, by field, in words."""

SEEDS = ("seed", "data.seed", "data.fold")
"""Keys in which the runs of one point may differ."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished run.

    Attributes:
        config: resolved, as primitives.
        before: cost and metrics of its first network, by name.
        after: of its last one, with ``file_bytes`` and ``latency`` where they are known.
        command: that makes it again.
    """

    config: Mapping[str, Any]
    before: Mapping[str, float]
    after: Mapping[str, float]
    command: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Point:
    """Runs of one configuration.

    Attributes:
        label: how it differs from the other points.
        trials: one for each seed.
        rival: whether nothing was compressed: a small network, trained as it is.
    """

    label: str
    trials: tuple[Trial, ...]
    rival: bool = False

    def mean(self, name: str) -> float:
        """Mean over the seeds."""
        return fmean(trial.after[name] for trial in self.trials)

    def has(self, name: str) -> bool:
        """Whether each run knows it."""
        return all(name in trial.after for trial in self.trials)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of the mean, corrected where seeds split the data anew; None for a single run."""
        if len(self.trials) < 2:
            return None
        found = corrected_interval([t.after[name] for t in self.trials], test_to_train=self._overlap())
        return found.low, found.high

    def drop(self, name: str, mode: str) -> float:
        """By how much the last network is worse than the first, run by run, in the mean."""
        sign = 1 if mode == "max" else -1
        return fmean(sign * (trial.before[name] - trial.after[name]) for trial in self.trials)

    def _overlap(self) -> float:
        data = [trial.config.get("data") or {} for trial in self.trials]
        same = all((one.get("seed"), one.get("fold")) == (data[0].get("seed"), data[0].get("fold")) for one in data)
        shares = data[0].get("shares")
        return 0.0 if same or not shares else shares[-1] / shares[0]


def points_of(trials: Iterable[Trial], *, rivals: Iterable[Trial] = ()) -> tuple[Point, ...]:
    """Trials of equal configuration as one point; a configuration without callbacks is a rival.

    >>> one, other = (Trial({"seed": s, "a": a}, {}, {"acc": s}) for s, a in ((1, 2), (1, 3)))
    >>> [point.label for point in points_of([one, other])]
    ['a=2', 'a=3']
    """
    groups: dict[tuple[bool, str], list[Trial]] = {}
    for given, found in ((False, trials), (True, rivals)):
        for trial in found:
            plain = given or trial.config.get("callbacks") == {}
            flat = {key: value for key, value in _flat(trial.config).items() if key not in SEEDS}
            groups.setdefault((plain, json.dumps(flat, sort_keys=True)), []).append(trial)
    own, others = ([json.loads(flat) for kind, flat in groups if kind is plain] for plain in (False, True))
    labels = [*_labels(own, "point"), *_labels(others, "small network")]
    groups = {key: groups[key] for key in sorted(groups, key=lambda key: key[0])}
    return tuple(
        Point(label, tuple(found), plain) for ((plain, _), found), label in zip(groups.items(), labels, strict=True)
    )


def front(points: Sequence[Point], metric: str, cost: str, mode: str) -> tuple[Point, ...]:
    """The points that no other beats: none is at least as good and as cheap, and better in one; by cost."""
    sign = 1 if mode == "max" else -1
    places = {point: (sign * point.mean(metric), -point.mean(cost)) for point in points}

    def is_beaten(point: Point) -> bool:
        mine = places[point]
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in places.values())

    return tuple(sorted((p for p in points if not is_beaten(p)), key=lambda point: point.mean(cost)))


def choose(points: Sequence[Point], monitor: str, cost: str, mode: str, max_drop: float) -> Point | None:
    """The cheapest point that loses no more than ``max_drop`` of the validated metric; else the one that loses least.

    The choice never looks at the test data: ``monitor`` is a metric of validation.
    """
    if not points:
        return None
    good = [point for point in points if point.drop(monitor, mode) <= max_drop + 1e-9]
    if good:
        return min(good, key=lambda point: point.mean(cost))
    return min(points, key=lambda point: point.drop(monitor, mode))


def check_cost(points: Sequence[Point], cost: str) -> str:
    """``cost``, if it is known of every point.

    Raises:
        CompressionError: it is not.
    """
    if cost not in COSTS:
        raise CompressionError(f"Unknown cost {cost!r}. {did_you_mean(cost, COSTS)}")
    lacking = [point.label for point in points if not point.has(cost)]
    if lacking:
        raise CompressionError(f"{COSTS[cost]} is not known of {lacking[0]!r}; choose another cost.")
    return cost


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    found = (_flat(inner, f"{key}.{name}".strip(".")) for name, inner in value.items())
    return {name: inner for one in found for name, inner in one.items()}


def _labels(configs: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    """What is not the same everywhere; the last words of its key are enough where they are nobody else's."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    changing = [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]
    short = _short(changing)
    texts = [
        ", ".join(f"{short[key]}={_value(config[key])}" for key in changing if key in config) for config in configs
    ]
    return [text or f"{word} {number}" for number, text in enumerate(texts, start=1)]


def _short(keys: Sequence[str]) -> dict[str, str]:
    def shortened(key: str) -> str:
        parts = key.split(".")
        for start in range(len(parts) - 1, -1, -1):
            end = ".".join(parts[start:])
            if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
                return end
        return key

    return {key: shortened(key) for key in keys}


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""How fast callables are beside each other: interleaved, paired, and with the noise of the machine shown."""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lightning_compress.errors import CompressionError, did_you_mean

Clock = Literal["cpu", "wall"]
Call = Callable[[], object]
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.thread_time, "wall": time.perf_counter}
CONTROL = "A/A"
SHORTEST_SAMPLE = 1e-3
RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles and the bootstrap 95 % interval (``low``, ``high``) of the median."""

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyRow:
    """One callable: its latency in milliseconds of wall time a call, and its time as a ratio to the baseline's."""

    name: str
    milliseconds: Spread
    ratio: Spread


@dataclass(frozen=True)
class LatencyComparison:
    """What `compare_latency` has measured; prints as a table on a rich console.

    Attributes:
        baseline: name of the callable that the ratios are to.
        clock: what the ratios are made of: ``"cpu"`` or ``"wall"``.
        rounds: how often each callable was sampled.
        rows: the baseline, its A/A control, then the others as given.
    """

    baseline: str
    clock: Clock
    rounds: int
    rows: tuple[LatencyRow, ...]

    def __getitem__(self, name: str) -> LatencyRow:
        """The row of that name; the control's is ``"A/A"``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise CompressionError(f"No row {name!r}. {did_you_mean(name, [row.name for row in self.rows])}")

    def as_dict(self) -> dict[str, Any]:
        """All figures in dicts, lists, strings and numbers, ready for JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}

    def __rich__(self) -> Table:
        """A table: latency with its quartiles; ratio with its quartiles and interval."""
        table = Table(title=f"{self.rounds} rounds, ratios of {self.clock} time to {self.baseline!r}")
        for heading in ("", "ms a call", "quartiles", "ratio", "quartiles", "95 % interval"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in self.rows:
            time_, ratio = row.milliseconds, row.ratio
            table.add_row(
                row.name,
                f"{time_.median:.3f}",
                f"{time_.lower_quartile:.3f} to {time_.upper_quartile:.3f}",
                f"{ratio.median:.3f}",
                f"{ratio.lower_quartile:.3f} to {ratio.upper_quartile:.3f}",
                f"{ratio.low:.3f} to {ratio.high:.3f}",
            )
        return table


def compare_latency(
    callables: Mapping[str, Call], *, rounds: int = 50, warmup: int = 3, clock: Clock = "cpu", seed: int = 0
) -> LatencyComparison:
    """Times callables against the first of them, so that what else the machine does falls on all alike.

    Each round samples all of them in a random order, and the baseline a second time as its own control: the A/A row
    shows which ratios are noise. Ratios are taken within a round. A sample repeats its call until it lasts a
    millisecond. Garbage collection is off while the clock runs.

    The ratios are of CPU time of the calling thread, which other processes hardly disturb. That clock does not see
    other threads: with several threads, or a device that works by itself, choose ``"wall"`` and let the callable
    synchronise. Latencies are always wall time.

    Args:
        callables: name to callable without arguments; the first is the baseline.
        rounds: samples of each callable, at least 2.
        warmup: calls of each callable before anything is timed.
        clock: of the ratios, ``"cpu"`` or ``"wall"``.
        seed: of the order and of the bootstrap.

    Raises:
        CompressionError: an argument out of its range, a callable that raises, or one that uses no CPU time under
            ``"cpu"``.

    >>> result = compare_latency({"sum": lambda: sum(range(5000)), "twice": lambda: sum(range(10000))}, rounds=5)
    >>> [row.name for row in result.rows]
    ['sum', 'A/A', 'twice']
    """
    _check(callables, rounds, warmup, clock)
    baseline, *others = callables
    repeats = {name: _warm_up(name, call, warmup) for name, call in callables.items()}
    samplers = {name: _sampler(callables[name], repeats[name]) for name in callables}
    order = {baseline: samplers[baseline], CONTROL: samplers[baseline], **{name: samplers[name] for name in others}}
    seconds = _sample(order, rounds, random.Random(seed))
    wall, compared = seconds["wall"], seconds[clock]
    for name, times in compared.items():
        if not np.all(times > 0):
            raise CompressionError(f"{name!r} uses no CPU time in the calling thread; choose clock='wall'.")
    generator = np.random.default_rng(seed)
    rows = tuple(
        LatencyRow(name, _spread(1e3 * wall[name], generator), _spread(compared[name] / compared[baseline], generator))
        for name in order
    )
    return LatencyComparison(baseline, clock, rounds, rows)


def _check(callables: Mapping[str, Call], rounds: int, warmup: int, clock: str) -> None:
    if not callables:
        raise CompressionError("No callables to compare; the first one given is the baseline.")
    for name, call in callables.items():
        if name == CONTROL:
            raise CompressionError(f"{CONTROL!r} is the name of the baseline's control; choose another.")
        if not callable(call):
            raise CompressionError(f"{name!r} is a {type(call).__name__}, not callable; wrap it: lambda: network(x).")
    if rounds < 2:
        raise CompressionError(f"rounds={rounds} shows no spread; use at least 2.")
    if warmup < 0:
        raise CompressionError(f"warmup={warmup} is negative; use 0 for none.")
    if clock not in CLOCKS:
        raise CompressionError(f"clock={clock!r} is unknown. {did_you_mean(clock, CLOCKS)}")


def _warm_up(name: str, call: Call, warmup: int) -> int:
    """Calls ``call``, and finds how many calls last as long as the shortest sample."""
    try:
        for _ in range(warmup):
            call()
        repeats = 1
        while (elapsed := _sampler(call, repeats)()["wall"] * repeats) < SHORTEST_SAMPLE:
            repeats = max(2 * repeats, min(10 * repeats, round(repeats * SHORTEST_SAMPLE / max(elapsed, 1e-9))))
    except Exception as error:
        raise CompressionError(f"{name!r} fails when it is called: {error}") from error
    return repeats


def _sampler(call: Call, repeats: int) -> Callable[[], dict[str, float]]:
    """A function that times ``repeats`` calls at once and returns seconds a call by each clock."""

    def sample() -> dict[str, float]:
        before = {name: clock() for name, clock in CLOCKS.items()}
        for _ in range(repeats):
            call()
        return {name: (clock() - before[name]) / repeats for name, clock in CLOCKS.items()}

    return sample


def _sample(
    samplers: Mapping[str, Callable[[], dict[str, float]]], rounds: int, order: random.Random
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Seconds a call by clock and name, each of shape (rounds,)."""
    seconds = {clock: {name: np.empty(rounds) for name in samplers} for clock in CLOCKS}
    with _no_garbage_collection():
        for round_ in range(rounds):
            for name in order.sample(list(samplers), len(samplers)):
                for clock, elapsed in samplers[name]().items():
                    seconds[clock][name][round_] = elapsed
    return seconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _spread(values: NDArray[np.float64], generator: np.random.Generator) -> Spread:
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    medians = np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Spread(float(median), float(lower), float(upper), float(low), float(high))

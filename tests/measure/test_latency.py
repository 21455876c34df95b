"""Latency comparisons: what is in them, and that nothing of the process stays changed."""

import gc
import io
import json
import time

import pytest
from rich.console import Console

from lightning_compress.errors import CompressionError
from lightning_compress.measure import compare_latency


def work(amount):
    return lambda: sum(range(amount))


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_ten_times_the_work_takes_longer(clock):
    result = compare_latency({"one": work(10_000), "ten": work(100_000)}, rounds=15, clock=clock)
    assert result["ten"].ratio.median > 3


def test_rows_are_baseline_control_and_the_others_in_order():
    result = compare_latency({"b": work(100), "a": work(100), "c": work(100)}, rounds=3)
    assert [row.name for row in result.rows] == ["b", "A/A", "a", "c"]
    assert result.baseline == "b"


def test_the_ratio_of_the_baseline_is_one_and_the_control_shows_the_noise():
    result = compare_latency({"only": work(20_000)}, rounds=15)
    baseline, control = result["only"].ratio, result["A/A"].ratio
    assert (baseline.median, baseline.low, baseline.high) == (1.0, 1.0, 1.0)
    assert control.lower_quartile < control.upper_quartile
    assert 0.5 < control.median < 2


@pytest.mark.parametrize("name", ["a", "A/A", "b"])
def test_spreads_are_in_order(name):
    row = compare_latency({"a": work(1000), "b": work(2000)}, rounds=8)[name]
    for spread in (row.ratio, row.milliseconds):
        assert spread.lower_quartile <= spread.median <= spread.upper_quartile
        assert spread.low <= spread.median <= spread.high
    assert row.milliseconds.median > 0


def test_a_wall_clock_sees_sleep():
    callables = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)}
    assert compare_latency(callables, rounds=3, clock="wall")["long"].ratio.median > 1.5


def test_short_calls_are_repeated_until_they_can_be_timed():
    calls = []
    compare_latency({"short": lambda: calls.append(1)}, rounds=2)
    assert len(calls) > 1000


def test_result_is_json_and_prints_as_a_table():
    result = compare_latency({"dense": work(100), "small": work(50)}, rounds=3)
    read_back = json.loads(json.dumps(result.as_dict()))
    assert [row["name"] for row in read_back["rows"]] == ["dense", "A/A", "small"]
    console = Console(file=io.StringIO(), width=120)
    console.print(result)
    assert all(word in console.file.getvalue() for word in ("dense", "A/A", "small", "95 % interval", "cpu time"))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_collection_is_as_it_was_and_off_while_timing(enabled, fails):
    states = []

    def call():
        states.append(gc.isenabled())
        if fails and len(states) > 3000 and not gc.isenabled():
            raise ValueError("late")

    try:
        (gc.enable if enabled else gc.disable)()
        if fails:
            with pytest.raises((CompressionError, ValueError), match="late"):
                compare_latency({"call": call}, rounds=100)
        else:
            compare_latency({"call": call}, rounds=2, warmup=0)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert states[-1] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"callables": {}}, "No callables"),
        ({"callables": {"a": 3}}, "'a' is a int, not callable"),
        ({"callables": {"A/A": work(1)}}, "name of the baseline's control"),
        ({"callables": {"a": work(1)}, "rounds": 1}, "rounds=1"),
        ({"callables": {"a": work(1)}, "warmup": -1}, "warmup=-1"),
        ({"callables": {"a": work(1)}, "clock": "wal"}, "Did you mean 'wall'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(CompressionError, match=message):
        compare_latency(**arguments)


def test_a_callable_that_raises_is_named():
    with pytest.raises(CompressionError, match="'broken' fails when it is called: division by zero"):
        compare_latency({"good": work(1), "broken": lambda: 1 / 0})


def test_an_unknown_row_is_refused_with_the_known_ones():
    result = compare_latency({"dense": work(10)}, rounds=2)
    with pytest.raises(CompressionError, match="Did you mean 'dense'"):
        result["dens"]

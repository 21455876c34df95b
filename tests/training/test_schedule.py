"""Schedules list targets; conformance tests run on every shape there is."""

from itertools import pairwise

import pytest

import lightning_compress as lc
from lightning_compress.registry import names, resolve
from lightning_compress.training import Schedule
from lightning_compress.training.schedule import cuts_needed

SHAPES = names("lightning_compress.training.schedules")


def values(targets):
    return [target.value for target in targets]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("final", [0.1, 0.5, 0.95])
def test_a_shape_rises_to_the_final_value(shape, final):
    function = resolve(shape, "lightning_compress.training.schedules")
    points = [function(k / 50, final) for k in range(1, 51)]
    assert all(a <= b + 1e-12 for a, b in pairwise(points))
    assert all(0 <= point <= final + 1e-12 for point in points)
    assert points[-1] == pytest.approx(final)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"one_shot"}))
@pytest.mark.parametrize("horizon", [1, 3, 10, 100])
@pytest.mark.parametrize("final", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("limit", [None, 0.1, 0.5, 1.0])
def test_no_cut_takes_more_than_max_step_of_what_is_left(shape, horizon, final, limit):
    targets = Schedule(shape).targets(final, horizon=horizon, max_step=limit)
    assert targets[-1].value == final
    before, time = 0.0, -1.0
    for target in targets:
        assert before < target.value
        assert (target.value - before) / (1 - before) <= (limit or 0.2) + 1e-9
        assert time <= target.time < horizon
        before, time = target.value, target.time


def test_cuts_come_once_an_epoch_where_max_step_allows():
    targets = Schedule("linear", end=0.5).targets(0.4, horizon=10)
    assert [target.time for target in targets] == [0, 1, 2, 3, 4]


def test_iterative_takes_as_few_rounds_as_max_step_allows():
    assert len(Schedule("iterative").targets(0.9, horizon=20)) == cuts_needed(0, 0.9, 0.2) == 11
    assert len(Schedule("iterative").targets(0.9, horizon=20, max_step=0.5)) == 4
    assert len(Schedule("iterative", rounds=20).targets(0.9, horizon=20)) == 20


def test_one_shot_needs_to_be_allowed():
    assert values(Schedule("one_shot").targets(0.5, horizon=4, max_step=0.5)) == [0.5]
    with pytest.raises(lc.CompressionError, match=r"takes 90.0% of what is left; max_step is 20%.*max_step=0.9"):
        Schedule("one_shot").targets(0.9, horizon=4)


def test_a_fixed_number_of_cuts_is_not_split_but_refused():
    with pytest.raises(lc.CompressionError, match="max_step is 20%"):
        Schedule("linear", rounds=2).targets(0.9, horizon=10)
    with pytest.raises(lc.CompressionError, match="max_step is 20%"):
        Schedule("linear", every=5).targets(0.9, horizon=10)


def test_start_and_end_count_epochs_or_shares():
    targets = Schedule("linear", start=2, end=6, rounds=4).targets(0.4, horizon=10)
    assert [target.time for target in targets] == [2, 3, 4, 5]
    targets = Schedule("linear", start=0.2, end=0.6, rounds=4).targets(0.4, horizon=10)
    assert [target.time for target in targets] == pytest.approx([2, 3, 4, 5])


def test_a_callable_is_a_shape():
    assert values(Schedule(lambda progress, final: final * progress**2, rounds=2).targets(0.2, horizon=4)) == [
        0.05,
        0.2,
    ]


def test_a_shape_that_overshoots_is_refused():
    with pytest.raises(lc.CompressionError, match="must rise to it"):
        Schedule(lambda progress, final: 2 * final, rounds=3).targets(0.2, horizon=4)


def test_nothing_to_reach_needs_no_cut():
    assert Schedule().targets(0.0, horizon=4) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "qubic"}, "Did you mean 'cubic'"),
        ({"start": -1}, "start=-1"),
        ({"end": 1.5}, "end=1.5"),
        ({"every": 0}, "every=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 2, "every": 1}, "not both"),
        ({"rounds": True}, "rounds=True"),
        ({"start": 0.5, "end": 0.2}, "no time for a cut"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(lc.CompressionError, match=message):
        Schedule(**arguments)


def test_an_interval_without_time_is_refused():
    with pytest.raises(lc.CompressionError, match="no time for a cut"):
        Schedule(start=5, end=3).targets(0.5, horizon=10)
    with pytest.raises(lc.CompressionError, match="no time for a cut"):
        Schedule(start=12, end=20).targets(0.5, horizon=10)

"""The report as data."""

import json

import pytest
from sample_report import make_report
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.report import Report, collect_environment, collect_layers, read_history


def test_report_comes_back_from_json_as_it_was():
    report = make_report()
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 1}'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(CompressionError, match=r"Not a report\.json"):
        Report.from_json(text)


def test_report_of_a_later_version_is_refused():
    state = {**json.loads(make_report().to_json()), "version": 3}
    with pytest.raises(CompressionError, match="version 3"):
        Report.from_json(json.dumps(state))


def test_asked_and_reached_stand_in_the_report():
    (end,) = make_report().asked_and_reached
    assert (end["asked"], end["reached"]) == (0.8, 0.5)


def test_layers_count_what_is_not_zero_and_leave_biases_out():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    module[0].weight.data[0] = 0
    first, last = collect_layers(nn.ModuleDict({"network": module}))
    assert (first.name, first.shape, first.weights, first.kept) == ("0", (2, 1, 3, 3), 18, 9)
    assert (last.name, last.weights) == ("3", 24)


def test_environment_is_strings():
    environment = collect_environment()
    assert {"torch", "lightning", "python", "processors"} <= set(environment)
    assert all(isinstance(value, str) for value in environment.values())


def test_history_puts_stages_one_after_the_other():
    history = read_history(make_report())
    assert history.stages == [("dense", 0.0), ("prune", 2.0)]
    assert history.end == 6
    assert history.metric == [(1, 0.5), (2, 0.97), (3, 0.968), (5, 0.9)]
    assert history.removed == {"WeightPruning": [(2, 0.0), (2, 0.5), (3, 0.8), (5, 0.5)]}
    assert [(event.kind, event.time) for event in history.events] == [
        ("cut", 2), ("recovery", 3), ("cut", 3), ("rollback", 5), ("stop", 5),
    ]  # fmt: skip
    assert history.reference == [(2, 0.97)]

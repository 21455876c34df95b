"""The schema of report.json: every field is documented, and stands in the file with the type that it has there."""

import dataclasses
import json
import re
import typing

import pytest
from sample_report import make_file, make_report
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.report import (
    Answers,
    FileResult,
    Histogram,
    Layer,
    Network,
    Report,
    Rival,
    SizeStep,
    collect_layers,
    read_report,
    read_rival,
    report,
)

CLASSES = (Report, Network, Layer, Histogram, FileResult, SizeStep, Answers, Rival)


def full_report():
    layers = collect_layers(nn.Sequential(nn.Linear(3, 2)), macs={"0": 6}, bits={"0.weight": 8})
    full = make_report(file=make_file())
    network = dataclasses.replace(full.networks[1], layers=layers)
    matrix = ((2, 0), (1, 1))
    return dataclasses.replace(
        full,
        networks=(full.networks[0], network),
        unknown=("the future",),
        answers=Answers(4, 0.75, 1, 0, matrix, matrix),
        rival=Rival("small", network, 44),
        sensitivity={"0.weight": ((0.5, 0.1), (0.9, 0.3))},
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_documented(kind):
    documented = set(re.findall(r"^ {8}(\w+): ", kind.__doc__, re.MULTILINE))
    assert {field.name for field in dataclasses.fields(kind)} <= documented


def assert_fits(value, hint):
    """A value of the JSON against the annotation of the field that it was written from."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        assert set(value) == set(hints)
        for name, inner in hints.items():
            assert_fits(value[name], inner)
    elif origin is tuple:
        assert isinstance(value, list)
        inner = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        for item, one in zip(value, inner, strict=True):
            assert_fits(item, one)
    elif arguments and type(None) in arguments:
        if value is not None:
            assert_fits(value, next(one for one in arguments if one is not type(None)))
    elif arguments:
        assert isinstance(value, dict)
        for name, item in value.items():
            assert isinstance(name, str)
            assert_fits(item, arguments[1])
    else:
        assert isinstance(value, (int, float) if hint is float else hint), (value, hint)


def test_file_has_the_fields_and_types_that_the_classes_say():
    assert_fits(json.loads(full_report().to_json()), Report)


def test_full_report_comes_back_as_it_was():
    full = full_report()
    assert Report.from_json(full.to_json()) == full


def test_report_of_version_1_is_read_with_defaults():
    state = json.loads(make_report().to_json())
    for name in ("status", "unknown", "answers", "rival", "sensitivity"):
        state.pop(name)
    for network in state["networks"]:
        network["layers"] = [{k: layer[k] for k in ("name", "shape", "weights", "kept")} for layer in network["layers"]]
    read = Report.from_json(json.dumps({**state, "version": 1}))
    assert read == make_report()


def test_reader_takes_a_folder_or_the_file_and_names_what_is_missing(tmp_path):
    full = full_report()
    (tmp_path / "report.json").write_text(full.to_json())
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == full
    assert read_rival(tmp_path) == Rival("trial", full.after, 44)
    with pytest.raises(CompressionError, match=r"nowhere.*has no report\.json"):
        read_report(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(CompressionError, match=r"Not a report\.json"):
        read_report(tmp_path)
    assert full.version == report.SCHEMA_VERSION

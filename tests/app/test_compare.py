"""``lightning-compress compare``: what differs between two runs."""

from dataclasses import replace

import pytest
from sample_report import make_file, make_report

from lightning_compress.report import Layer, Network


@pytest.fixture
def runs(tmp_path):
    one = make_report(seed=0, file=make_file())
    other = make_report(seed=1, after={"val_acc": 0.9, "test_acc": 0.91})
    for name, report in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report.to_json())
    return [str(tmp_path / name) for name in ("one", "other")]


def test_differences_in_configuration_metrics_bytes_and_layers_are_shown(command, runs, capfd):
    assert command("compare", *runs) == 0
    output = capfd.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert lines["seed"] == ["0", "1"]
    assert lines["test_acc"] == ["0.9550", "0.9100", "-0.0450"]
    assert lines["macs"] == ["100", "100"]
    assert "bytes, file" in output
    assert "python" not in output


def test_layers_that_differ_are_named(command, runs, capfd, tmp_path):
    report = make_report()
    cost = {**report.after.cost, "parameters": 60}
    networks = (report.networks[0], Network("prune", 4, cost, report.after.metrics, (Layer("fc", (5, 10), 50, 20),)))
    (tmp_path / "other" / "report.json").write_text(replace(report, networks=networks).to_json())
    assert command("compare", *runs) == 0
    output = capfd.readouterr().out
    assert "layers that differ" in output
    assert "5x10" in output
    assert "1.83x fewer" in output


def test_run_compared_with_itself_has_no_differences(command, runs, capfd):
    assert command("compare", runs[0], f"{runs[0]}/report.json") == 0
    output = capfd.readouterr().out
    assert "configured alike" in output
    assert "layers alike" in output


@pytest.mark.parametrize(
    ("arguments", "words"), [((), "takes two runs, not 0"), (("nowhere", "nowhere"), "finished run")]
)
def test_wrong_calls_are_answered_with_the_way_out(command, capfd, arguments, words):
    assert command("compare", *arguments) == 1
    assert words in capfd.readouterr().err

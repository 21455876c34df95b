"""A size, or a drop, that is asked of the command: values are found, trials are not run twice, words match figures."""

import pytest

from lightning_compress.app.targets import parse_size
from lightning_compress.errors import CompressionError
from lightning_compress.report import Report

SHORT = ("stages.dense.epochs=2", "stages.neurons.epochs=2", "stages.prune.epochs=3",
         "callbacks.neurons.recover=null", "stages.cluster.epochs=1", "logger=csv",
         "callbacks.weights.schedule=cubic", "callbacks.weights.recover=null",
         "callbacks.weights.max_step=1.0")  # fmt: skip


def read(command):
    report = Report.from_json((command.run_folder / "report.json").read_text())
    return report, report.asked_and_reached[-1]


def test_a_size_is_kept_to_and_used(command, capfd):
    assert command(*SHORT, "target.size=1.2kB") == 0
    report, end = read(command)
    assert 800 < report.file.bytes <= 1200
    assert (end["asked"], end["reached"]) == (1200, report.file.bytes)
    assert "asked for at most 1,200 bytes, reached" in capfd.readouterr().out
    assert report.file.bytes == (command.run_folder / "model.lcz").stat().st_size


@pytest.mark.slow
def test_a_drop_is_kept_to_on_validation_and_trials_are_not_run_twice(command, capfd):
    assert command(*SHORT, "target.max_drop=0.3") == 0
    report, end = read(command)
    assert end["reached"] == pytest.approx(report.before.metrics["val_acc"] - report.after.metrics["val_acc"])
    assert end["reached"] <= 0.3
    trials = {path: path.stat().st_mtime_ns for path in (command.run_folder / "target").rglob("final.ckpt")}
    assert len(trials) > 4
    (command.run_folder / "report.json").unlink()
    assert command(*SHORT, "target.max_drop=0.3") == 0
    assert trials == {path: path.stat().st_mtime_ns for path in (command.run_folder / "target").rglob("final.ckpt")}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["target.size=3kB", "target.max_drop=0.1"], "give one"),
        (["target.size=-3"], "is no size"),
        (["target.max_drop=-1"], "is not a number"),
        (["target.size=3kB", "recipe=iterative_pruning"], "recipe=deep_compression"),
    ],
)
def test_what_cannot_be_solved_for_is_refused_before_training(command, capfd, asked, says):
    assert command("logger=csv", *asked) == 1
    assert says in capfd.readouterr().err
    assert not list(command.folder.rglob("*.ckpt"))


def test_out_of_reach_says_how_far(command, capfd):
    assert command(*SHORT, "target.size=100") == 1
    assert "100 is out of reach" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "kB", "3 bytes", "0", "1e3x", True])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(CompressionError, match="no size"):
        parse_size(text)

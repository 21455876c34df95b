"""Runs of the command: what they leave, how they go on, what they refuse."""

import csv
import re

import pytest
import torch

import lightning_compress as lc
from lightning_compress.app import stages
from lightning_compress.plan import CHECKPOINT_KEY, Plan
from lightning_compress.report import Report
from lightning_compress.zoo import Classifier, Digits


def read(path):
    return torch.load(path, weights_only=True)


def assert_same_network(one, other):
    a, b = read(one), read(other)
    assert list(a["state_dict"]) == list(b["state_dict"])
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    assert Plan.from_state(a[CHECKPOINT_KEY]["plan"]) == Plan.from_state(b[CHECKPOINT_KEY]["plan"])
    assert a[CHECKPOINT_KEY]["journal"] == b[CHECKPOINT_KEY]["journal"]


class Interruption:
    """Breaks off a fit at its n-th epoch's end, before or after the checkpoint is written."""

    def __init__(self, monkeypatch, epoch, error, *, written):
        self.left, self.error, self.written = epoch, error, written
        self.save = stages.StageCheckpoint.on_train_epoch_end
        monkeypatch.setattr(stages.StageCheckpoint, "on_train_epoch_end", lambda callback, *a: self(callback, *a))

    def __call__(self, callback, trainer, module):
        self.left -= 1
        if self.left == 0 and not self.written:
            raise self.error
        self.save(callback, trainer, module)
        if self.left == 0:
            raise self.error


def test_run_leaves_report_checkpoints_and_csv_log(command, capfd):
    assert command.small() == 0
    output = capfd.readouterr()
    assert output.err == ""
    assert re.search(r"dense\s+3/3\s+val_acc 0\.9\d\d\n", output.out)
    assert re.search(r"prune\s+5/5\s+val_acc 0\.9\d\d   kept \d\d\.\d %   \d cuts?", output.out)
    report = Report.from_json((command.run_folder / "report.json").read_text())
    assert [network.stage for network in report.networks] == ["dense", "prune"]
    assert report.seed == 3
    assert "outputs/iterative_pruning/" in output.out
    assert (command.run_folder / "report.html").read_text().startswith("<!doctype html>")
    with (command.run_folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_acc"]]
    assert len(rows) == 8
    assert [int(row["epoch"]) for row in rows] == list(range(8))


def test_figures_of_report_are_those_of_the_checkpoint(command):
    command.small()
    report = Report.from_json((command.run_folder / "report.json").read_text())
    module = lc.load_from_checkpoint(Classifier, command.run_folder / "prune" / "final.ckpt")
    data = Digits()
    data.setup()
    pictures, classes = data.test.tensors
    with torch.no_grad():
        accuracy = (module.eval()(pictures).argmax(1) == classes).float().mean()
    assert report.after.metrics["test_acc"] == pytest.approx(accuracy.item(), abs=1e-6)
    assert report.after.cost["nonzero_parameters"] == sum(int(p.count_nonzero()) for p in module.parameters())
    assert report.after.sparsity > 0.3


@pytest.mark.parametrize("epoch", [2, 5, 7])
@pytest.mark.parametrize("written", [False, True], ids=["before-save", "after-save"])
def test_interrupted_run_goes_on_to_the_same_network(command, monkeypatch, capfd, epoch, written):
    command.small("hydra.run.dir=whole")
    with monkeypatch.context() as patch:
        Interruption(patch, epoch, KeyboardInterrupt(), written=written)
        assert command.small("hydra.run.dir=broken") == 130
    assert "the same command goes on" in capfd.readouterr().err
    assert not (command.folder / "broken" / "report.json").exists()
    assert command.small("hydra.run.dir=broken") == 0
    for stage in ("dense", "prune"):
        assert_same_network(
            command.folder / "whole" / stage / "final.ckpt", command.folder / "broken" / stage / "final.ckpt"
        )
    whole, broken = (
        Report.from_json((command.folder / name / "report.json").read_text()) for name in ("whole", "broken")
    )
    assert whole == broken


def test_finished_run_started_again_shows_its_table_and_says_so(command, capfd):
    command.small()
    first = capfd.readouterr().out
    checkpoint = command.run_folder / "prune" / "final.ckpt"
    written = checkpoint.stat().st_mtime_ns
    assert command.small() == 0
    second = capfd.readouterr().out
    assert "finished before" in second
    assert second.split("report ")[0].strip() in first
    assert checkpoint.stat().st_mtime_ns == written


def test_fresh_starts_over_to_the_same_network(command):
    command.small()
    checkpoint = command.run_folder / "prune" / "final.ckpt"
    before = checkpoint.read_bytes()
    written = checkpoint.stat().st_mtime_ns
    assert command.small("fresh=true") == 0
    assert checkpoint.stat().st_mtime_ns != written
    assert checkpoint.read_bytes() == before


def test_fresh_touches_nothing_in_a_folder_of_somebody_else(command):
    (command.folder / "mine").mkdir()
    (command.folder / "mine" / "thesis.txt").write_text("all of it")
    command.small("hydra.run.dir=mine", "fresh=true")
    assert (command.folder / "mine" / "thesis.txt").read_text() == "all of it"


def test_another_configuration_in_the_same_folder_is_refused_with_the_keys(command, capfd):
    command.small("hydra.run.dir=here")
    before = (command.folder / "here" / "report.json").read_bytes()
    capfd.readouterr()
    assert command.small("hydra.run.dir=here", "callbacks.weights.sparsity=0.8") == 1
    line = capfd.readouterr().err
    assert "callbacks.weights.sparsity was" in line
    assert "is 0.8" in line
    assert "fresh=true" in line
    assert (command.folder / "here" / "report.json").read_bytes() == before


def test_second_process_in_the_same_folder_is_refused(command, capfd):
    fcntl = pytest.importorskip("fcntl")
    (command.folder / "here").mkdir()
    with (command.folder / "here" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command.small("hydra.run.dir=here") == 1
    assert "Another process" in capfd.readouterr().err


def test_neuron_pruning_recipe_shrinks_the_network(command, capfd):
    epochs = ("stages.dense.epochs=3", "stages.prune.epochs=4")
    assert command("recipe=neuron_pruning", "logger=csv", *epochs, "callbacks.neurons.recover=null") == 0
    report = Report.from_json((command.run_folder / "report.json").read_text())
    assert report.after.cost["macs"] < 0.5 * report.before.cost["macs"]
    assert report.plan
    module = lc.load_from_checkpoint(Classifier, command.run_folder / "prune" / "final.ckpt")
    assert sum(p.numel() for p in module.parameters()) == report.after.cost["parameters"]


def test_nan_in_mid_run_keeps_the_last_good_checkpoint_and_names_the_epoch(command, capfd):
    assert command.small("module.lr=1e30") == 1
    assert "epoch" in capfd.readouterr().err

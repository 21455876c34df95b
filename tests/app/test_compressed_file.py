"""Deep Compression from the command: the file is real, what is read back scores the same, every byte is told."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch

import lightning_compress as lc
from lightning_compress.artifact import unpack_state
from lightning_compress.report import Report
from lightning_compress.zoo import Classifier

SHORT = ("stages.dense.epochs=3", "stages.neurons.epochs=3", "stages.prune.epochs=6", "stages.cluster.epochs=2",
         "logger=csv",
         "callbacks.weights.sparsity=0.8",
         "callbacks.clusters.rate=1e-4", "callbacks.clusters.first_rate=null")  # fmt: skip


@pytest.fixture(scope="module")
def run(shared_command):
    with redirect_stdout(StringIO()) as output:
        assert shared_command(*SHORT) == 0
    shared_command.output = output.getvalue()
    return shared_command


@pytest.fixture
def report(run):
    return Report.from_json((run.run_folder / "report.json").read_text())


def test_the_default_run_writes_a_file_and_scores_what_it_reads_back(run, report):
    path = run.run_folder / "model.lcz"
    assert report.file.bytes == path.stat().st_size
    assert report.file.ratio == pytest.approx(4 * 50_610 / path.stat().st_size)
    assert report.file.metrics == dict(report.after.metrics)
    assert report.file.metrics["test_acc"] > 0.9
    stored, last = unpack_state(path), torch.load(run.run_folder / "cluster" / "final.ckpt", weights_only=True)
    assert all(torch.equal(stored[name], weight) for name, weight in last["state_dict"].items())
    lc.load_compressed(path, into=Classifier("lenet_300_100"))


def test_the_steps_lead_from_the_dense_network_to_the_file(report):
    names, sizes = zip(*[(step.step, step.bytes) for step in report.file.steps], strict=True)
    assert names == ("dense, fp32", "after 'neurons'", "after 'prune'", "after 'cluster'", "Huffman-coded", "model.lcz")
    assert list(sizes[:5]) == sorted(sizes[:5], reverse=True)
    assert [step.real for step in report.file.steps] == [False] * 4 + [True] * 2


def test_few_values_are_left_in_every_tensor(run, report):
    state = unpack_state(run.run_folder / "model.lcz")
    assert all(len(weight.unique()) <= 7 for weight in state.values())
    assert {layer["name"] for layer in report.file.layers} == set(state)


def test_terminal_and_page_show_the_file(run, report):
    page = (run.run_folder / "report.html").read_text()
    for text in ("Huffman-coded", f"{report.file.bytes:,}"):
        assert text in run.output
        assert text in page
    assert "100 % of layers clustered" in run.output


def test_a_run_that_stopped_before_its_report_does_not_write_the_file_again(run, report):
    path = run.run_folder / "model.lcz"
    (run.run_folder / "report.json").unlink()
    before = path.stat().st_mtime_ns
    assert run(*SHORT) == 0
    assert path.stat().st_mtime_ns == before
    assert json.loads((run.run_folder / "report.json").read_text())["file"]["bytes"] == report.file.bytes


@pytest.mark.parametrize("name", ["model.zip", "a/model.lcz"])
def test_a_name_that_is_none_of_a_file_is_refused_before_training(command, capfd, name):
    assert command(*SHORT, f"file={name}") == 1
    assert "ends with .lcz" in capfd.readouterr().err
    assert not list(command.folder.rglob("*.ckpt"))

"""CompressionReport in any Trainer: whole and honest, resumed, broken off, on two processes, with W&B in trouble."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from support import User, every_epoch, fit, loader, on_two_processes, trainer, validation_loader

import lightning_compress as lc
from lightning_compress.report import callback as report_callback
from lightning_compress.report import read_report
from lightning_compress.report.scalars import SCALARS
from lightning_compress.training import Schedule


def later(sparsity=0.5):
    return lc.WeightPruning(sparsity, schedule=Schedule("one_shot", start=2), max_step=0.9)


def seeded(network="mlp"):
    torch.manual_seed(0)
    return User(network)


def accuracy(module, loader):
    module.eval()
    with torch.no_grad():
        answers = torch.cat([module(images).argmax(1) for images, _ in loader])
    return float((answers == loader.dataset.tensors[1]).float().mean())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit with neurons and weights taken out, its module and its report."""
    folder = tmp_path_factory.mktemp("run")
    module, callback = seeded("conv"), lc.CompressionReport(folder, file="model.lcz", sensitivity=True)
    fit(
        module,
        lc.NeuronPruning(0.3, schedule=Schedule("one_shot", start=2), max_step=0.5),
        later(),
        callback,
        max_epochs=5,
    )
    return folder, module, read_report(folder)


def test_page_and_data_are_those_of_the_network_that_is_left(run):
    folder, module, report = run
    assert report.status == "finished"
    assert report.after.metrics["val_acc"] == pytest.approx(accuracy(module, validation_loader()))
    assert report.after.cost["nonzero_parameters"] == sum(int(p.count_nonzero()) for p in module.parameters())
    assert report.after.cost["macs"] == lc.measure(module, torch.zeros(1, 64)).macs
    assert report.file.bytes == (folder / "model.lcz").stat().st_size
    assert len(report.plan) == len(lc.Plan.of(module))
    assert report.unknown == ()
    page = (folder / "report.html").read_text()
    for words in (
        "Before and after",
        "What happened when",
        "How the weights spread",
        "What zeros cost",
        "Plan: 1 edits",
    ):
        assert words in page


def test_before_is_the_last_validated_network_before_the_first_cut(run):
    _, _, report = run
    first_cut = next(entry["epoch"] for entry in report.journal if entry["kind"] == "cut")
    validations = {e["epoch"]: e["data"]["val_acc"] for e in report.journal if e["kind"] == "measurement"}
    assert report.before.metrics["val_acc"] == validations[first_cut]
    assert report.before.cost["nonzero_parameters"] > 0.99 * report.before.cost["parameters"]
    assert [layer.name for layer in report.before.layers] == ["stem", "branch", "head"]


def test_answers_before_and_after_are_counted(run):
    _, _, report = run
    answers = report.answers
    assert answers.samples == 200 == sum(map(sum, answers.after))
    right = sum(answers.after[k][k] for k in range(10)) / 200
    assert right == pytest.approx(report.after.metrics["val_acc"], abs=1e-6)
    before = sum(answers.before[k][k] for k in range(10))
    assert 200 * right - before == pytest.approx(answers.gained - answers.lost)


def test_report_changes_nothing_in_the_fit(tmp_path):
    plain = seeded()
    fit(plain, later(), max_epochs=4)
    watched = seeded()
    fit(watched, later(), lc.CompressionReport(tmp_path, sensitivity=True), max_epochs=4)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_resumed_fit_tells_of_the_whole_of_it(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    fit(seeded(), later(), lc.CompressionReport(whole), every_epoch(tmp_path), max_epochs=5)
    fit(seeded(), later(), lc.CompressionReport(again), max_epochs=5, ckpt_path=tmp_path / "epoch=2.ckpt")
    one, other = json.loads((whole / "report.json").read_text()), json.loads((again / "report.json").read_text())
    for report in (one, other):
        report["config"].pop("callbacks")
    assert one == other


class BreakOff(Callback):
    def __init__(self, error, epoch):
        self.error, self.epoch = error, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 5:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("the disk <is> full"), KeyboardInterrupt()], ids=["error", "keyboard"])
def test_fit_that_breaks_off_leaves_a_report_that_says_so(tmp_path, error):
    callback = lc.CompressionReport(tmp_path)
    with pytest.raises((RuntimeError, SystemExit)):
        fit(seeded(), later(), callback, BreakOff(error, epoch=3), max_epochs=6)
    report = read_report(tmp_path)
    assert "broke off at epoch 3" in report.status
    assert type(error).__name__ in report.status
    assert any("last validation" in line for line in report.unknown)
    assert "broke off" in (tmp_path / "report.html").read_text()
    assert "<is>" not in (tmp_path / "report.html").read_text()


def test_what_cannot_be_known_is_said(tmp_path):
    class Stubborn(User):
        def forward(self, images):
            raise TypeError("call network")

    torch.manual_seed(0)
    fit(Stubborn(), later(), lc.CompressionReport(tmp_path / "a"), validation=False, max_epochs=4)
    report = read_report(tmp_path / "a")
    assert report.after.metrics == {}
    assert "no validation data" in " ".join(report.unknown)
    assert report.after.cost["macs"] > 0
    assert report.answers is None
    assert "What this report cannot say" in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    "make",
    [
        lambda: lc.QuantizationAwareTraining(4, 8),
        lambda: lc.BinaryConnect(),
        lambda: lc.WeightClustering(8, start=1),
        lambda: lc.LowRank(0.5, start=1),
        lambda: lc.Distillation(User(), fidelity=True),
    ],
    ids=["qat", "binary", "clusters", "low-rank", "distillation"],
)
def test_works_beside_our_other_callbacks(tmp_path, make):
    fit(seeded(), make(), lc.CompressionReport(tmp_path), max_epochs=3)
    report = read_report(tmp_path)
    assert report.status == "finished"
    assert {"val_acc"} <= set(report.before.metrics) & set(report.after.metrics)
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")


def test_bits_are_those_of_the_quantizers(tmp_path):
    fit(seeded(), lc.QuantizationAwareTraining(4, 8, edge_bits=None), lc.CompressionReport(tmp_path), max_epochs=2)
    assert {layer.bits for layer in read_report(tmp_path).after.layers} == {4}


def test_file_and_zeros_are_of_the_weights_that_forwards_see(tmp_path):
    module = seeded()
    fit(module, lc.TernaryWeights(), lc.CompressionReport(tmp_path, file="model.lcz"), max_epochs=2)
    written = lc.load_compressed(tmp_path / "model.lcz", into=seeded())
    weights = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
    assert all(written.get_parameter(name).unique().numel() <= 3 for name in weights)
    assert read_report(tmp_path).after.cost["nonzero_parameters"] < sum(p.numel() for p in module.parameters()) * 0.9


def test_honest_rival_stands_beside(tmp_path, run):
    fit(seeded(), later(), lc.CompressionReport(tmp_path, rival=run[0]), max_epochs=4)
    assert read_report(tmp_path).rival.file_bytes == run[2].file.bytes
    assert "rival: User" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"mode": "up"}, "No mode 'up'"), ({"file": "model.bin"}, "ends with .lcz"), ({"rival": "nowhere"}, "report.json"),
     ({"samples": -1}, "samples=-1")],
)  # fmt: skip
def test_wrong_values_are_refused_at_once(options, words):
    with pytest.raises(lc.CompressionError, match=words):
        lc.CompressionReport("folder", **options)


def test_metric_that_nobody_logs_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(lc.CompressionError, match=r"val_accuracy.*val_acc"):
        fit(seeded(), lc.CompressionReport(tmp_path, monitor="val_accuracy"), max_epochs=2)


class Offline(WandbLogger):
    """One of W&B's that has no service behind it."""

    name = version = save_dir = experiment = None

    def __init__(self):
        pass

    def ignore(self, *args, **kwargs):
        pass

    log_hyperparams = log_metrics = log_graph = save = finalize = after_save_checkpoint = ignore


def test_wandb_that_dies_at_the_end_costs_one_warning(tmp_path, monkeypatch, recwarn):
    def die(*args, **options):
        raise OSError("the service is gone")

    monkeypatch.setattr(report_callback, "send_report", die)
    runner = trainer(later(), lc.CompressionReport(tmp_path), max_epochs=4, logger=Offline())
    runner.fit(seeded(), loader(), validation_loader())
    assert len([one for one in recwarn if "the service is gone" in str(one.message)]) == 1
    assert read_report(tmp_path).status == "finished"


def test_first_of_two_processes_writes_one_report(tmp_path):
    runs = on_two_processes(Path(__file__).parent / "ddp_report.py", tmp_path)
    (ranks,) = runs.values()
    assert [rank["has_report"] for rank in ranks] == [True, False]
    report = read_report(tmp_path / "run" / "report")
    assert report.after.cost["nonzero_parameters"] == ranks[1]["kept"]
    assert any("first process" in line for line in report.unknown)


def test_every_scalar_that_is_logged_has_a_meaning_and_a_unit(tmp_path):
    teacher = User()
    callbacks = (lc.NeuronPruning(0.2), later(), lc.WeightClustering(8, start=1), lc.Distillation(teacher))
    runner = fit(seeded(), *callbacks, max_epochs=4)
    logged = {name.removeprefix("compress/") for name in runner.callback_metrics if name.startswith("compress/")}
    assert {"sparsity", "agreement"} <= logged
    assert {name.replace("teacher_", "student_") for name in logged} <= set(SCALARS)

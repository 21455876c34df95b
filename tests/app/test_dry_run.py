"""``dry_run=true``: what would be cut; nothing is trained, and nothing is left behind."""

import re

import pytest

from lightning_compress.app.dry_run import HoldStill

SMALL = ("recipe=neuron_pruning", "stages.dense.epochs=2", "stages.prune.epochs=12", "logger=csv")


def test_dry_run_tells_what_each_stage_leaves_and_leaves_nothing(command, capfd):
    assert command(*SMALL, "dry_run=true") == 0
    output = capfd.readouterr().out
    macs = re.search(r"MACs, dense +260,520 +([\d,]+) +([\d.]+)x", output)
    assert float(macs[2]) == pytest.approx(1 / 0.3, abs=0.2)
    assert re.search(r"conv1 +180 of 20x1x3x3 +\d+ of \d+x1x3x3", output)
    assert "Plan:" in output
    assert "epochs of 34 batches: 476 steps" in output
    assert "Nothing was trained. Weights are fresh" in output
    assert not [path for path in command.folder.rglob("*") if path.is_file()]


def test_plan_is_another_name_for_it(command, capfd, monkeypatch):
    seen = []
    monkeypatch.setattr("lightning_compress.app.run.dry_run", lambda config, *_: seen.append(config.dry_run))
    assert command("plan", "--dry-run", *SMALL) == 0
    assert command("plan", *SMALL) == 0
    assert seen == [True, True]


RATE = (
    *(f"stages.{stage}.epochs=3" for stage in ("dense", "neurons", "prune", "cluster")),
    *("callbacks.neurons.recover=null", "callbacks.weights.recover=null", "logger=csv", "report.sensitivity=false"),
)


def test_what_depends_on_trained_weights_is_not_guessed_from_fresh_ones(command, capfd):
    assert command(*RATE, "dry_run=true") == 0
    output = capfd.readouterr().out
    assert "What clusters leaves depends on trained weights" in output
    assert "bytes of the file" not in output


@pytest.mark.slow
def test_trained_stages_are_taken_as_they_are_and_tell_the_file(command, capfd):
    assert command(*RATE) == 0
    capfd.readouterr()
    files = {path: path.stat().st_mtime_ns for path in command.folder.rglob("*.ckpt")}
    assert command(*RATE, "dry_run=true") == 0
    assert re.search(r"bytes of the file +202,440 \(fp32\) .*x", capfd.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in command.folder.rglob("*.ckpt")} == files


def test_held_still_a_network_learns_nothing():
    import lightning as L
    import torch
    from support import loader

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def training_step(self, batch):
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    module = Module()
    before = module.layer.weight.detach().clone()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", callbacks=[HoldStill()], enable_model_summary=False, **options)
    trainer.fit(module, loader())
    assert trainer.global_step == 10
    assert torch.equal(module.layer.weight, before)


def test_dry_run_says_when_only_fresh_weights_forbid_a_cut(command, capfd):
    assert command("recipe=deep_compression_conv", "dry_run=true", "logger=csv") == 1
    error = capfd.readouterr().err
    assert "Stage 'prune': 'network.fc2.weight' has 5000 weights" in error
    assert "trained ones may allow it" in error

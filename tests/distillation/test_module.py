"""DistillationModule: plain networks with a built-in step, LightningModules with their own."""

import copy
import pickle

import lightning as L
import pytest
import torch
from distillation.distilled import Manual, Rich, accuracy, trained
from support import Look, User, every_epoch, fit, mlp, same

import lightning_compress as lc
from lightning_compress.distillation import Distillation, DistillationModule


def test_a_plain_network_is_trained_and_its_checkpoint_is_its_own(tmp_path):
    L.seed_everything(1, verbose=False)
    network = mlp()
    module = DistillationModule(
        network, trained(), alpha=0.9, temperature=2.0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    runner = fit(module, every_epoch(tmp_path), max_epochs=6)
    assert accuracy(network) > 0.5
    assert runner.callback_metrics["val_acc"] > 0.5
    fresh = mlp()
    fresh.load_state_dict(torch.load(tmp_path / "epoch=5.ckpt", weights_only=True)["state_dict"], strict=True)
    assert same(dict(fresh.state_dict()), dict(network.state_dict()))
    assert [name for name, _ in module.named_children()] == ["student"]


@pytest.mark.parametrize("user", [Rich, Manual, User])
def test_around_a_lightning_module_it_does_what_the_callback_does(tmp_path, user):
    states = []
    for wrapped in (True, False):
        L.seed_everything(6, verbose=False)
        inner = user()
        options = {"alpha": 0.6, "temperature": 3.0}
        if wrapped:
            runner = fit(DistillationModule(inner, trained(), **options), every_epoch(tmp_path), max_epochs=2)
        else:
            runner = fit(inner, Distillation(trained(), **options), max_epochs=2)
        states.append(copy.deepcopy(inner.state_dict()))
        assert "val_acc" in runner.callback_metrics
    assert same(dict(states[0]), dict(states[1]))
    loaded = user.load_from_checkpoint(tmp_path / "epoch=1.ckpt")
    assert same(dict(loaded.state_dict()), dict(states[0]))


def test_hooks_of_the_user_are_called(tmp_path):
    inner = Rich(hidden=20)
    fit(DistillationModule(inner, trained()), every_epoch(tmp_path), max_epochs=2)
    assert inner.called.count("epoch") == 2
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert checkpoint["mine"] == 20
    assert checkpoint["hyper_parameters"] == {"hidden": 20, "lr": 0.1}


@pytest.mark.parametrize("student", [mlp, Rich, Manual])
def test_resume_is_exact(tmp_path, student):
    L.seed_everything(1, verbose=False)
    whole = fit(DistillationModule(student(), trained()), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2, verbose=False)
    resumed = fit(DistillationModule(student(), trained()), max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(dict(whole.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict()))


def test_copies_in_mid_fit_share_the_teachers_and_take_no_part_in_the_fit():
    look = Look(lambda _, module: (copy.deepcopy(module), pickle.loads(pickle.dumps(module))), step=3)
    teacher = copy.deepcopy(trained())
    fit(DistillationModule(mlp(), teacher), look, max_epochs=1)
    assert look.seen[0][0]._distillation.bank.teachers[0].source is teacher
    for duplicate in look.seen[0]:
        fit(duplicate, max_epochs=1)


def test_single_weights_can_be_pruned_in_it_and_neurons_are_refused():
    module = DistillationModule(mlp(), trained())
    fit(module, lc.WeightPruning(0.6), max_epochs=3)
    zeros = sum(int((p == 0).sum()) for p in module.student.parameters() if p.dim() > 1)
    assert zeros / sum(p.numel() for p in module.student.parameters() if p.dim() > 1) == pytest.approx(0.6, abs=0.01)
    with pytest.raises(lc.CompressionError, match="use the callback Distillation"):
        fit(DistillationModule(mlp(), trained()), lc.NeuronPruning(0.3), max_epochs=3)

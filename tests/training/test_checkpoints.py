"""Checkpoints of networks that shrink: replayed, truthful, loadable by anybody."""

import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from support import User, digits, every_epoch, fit, loader, same, trainer, validation_loader

import lightning_compress as lc
from lightning_compress.training import Replay, TargetCheckpoint


class StopAfterOneEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def accuracy(module) -> float:
    images, labels = digits()
    with torch.no_grad():
        return float((module.eval()(images[1000:1200]).argmax(1) == labels[1000:1200]).float().mean())


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_from_checkpoint_gives_the_shrunken_network(tmp_path, weights_only):
    module = User("conv")
    fit(module, lc.NeuronPruning(0.5), every_epoch(tmp_path, save_weights_only=weights_only))
    loaded = lc.load_from_checkpoint(User, tmp_path / "epoch=2.ckpt")
    assert loaded.network.stem.out_channels < 8
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    assert lc.Plan.of(loaded) == lc.Plan.of(module)
    assert lc.explain(loaded) == lc.explain(tmp_path / "epoch=2.ckpt")
    assert "on_load_checkpoint" not in User.__dict__


def test_a_checkpoint_holds_primitives_and_tensors_and_the_vanilla_keys(tmp_path):
    fit(
        User(),
        lc.WeightPruning(0.5, recover=lc.Recovery("val_acc", mode="min", patience=9)),
        lc.NeuronPruning(0.3),
        every_epoch(tmp_path),
    )
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == User().state_dict().keys()
    assert checkpoint["callbacks"]["WeightPruning"]["snapshot"] is not None


def test_a_plain_checkpoint_of_the_class_loads_too(tmp_path):
    module = User()
    fit(module, every_epoch(tmp_path), max_epochs=1)
    loaded = lc.load_from_checkpoint(User, tmp_path / "epoch=0.ckpt", map_location="cpu")
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    with pytest.raises(lc.CompressionError, match="carries no Plan"):
        lc.explain(tmp_path / "epoch=0.ckpt")


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_earlier_larger_checkpoint_can_be_evaluated_after_the_fit(tmp_path, stage):
    module = User()
    runner = fit(module, lc.NeuronPruning(0.6), every_epoch(tmp_path), max_epochs=5)
    small = module.network[0].out_features
    run = getattr(runner, stage)
    run(module, validation_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert module.network[0].out_features > small
    early = lc.load_from_checkpoint(User, tmp_path / "epoch=0.ckpt")
    assert same(dict(early.state_dict()), dict(module.state_dict()))
    run(module, validation_loader(), ckpt_path=tmp_path / "epoch=4.ckpt", verbose=False)
    assert module.network[0].out_features == small
    assert accuracy(module) == accuracy(lc.load_from_checkpoint(User, tmp_path / "epoch=4.ckpt"))


def test_best_checkpoint_is_tested_in_the_same_process(tmp_path):
    module = User()
    best = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max", save_weights_only=True)
    runner = fit(module, lc.NeuronPruning(0.6), lc.WeightPruning(0.5), best, max_epochs=5)
    figures = runner.test(module, validation_loader(), ckpt_path="best", verbose=False)[0]
    assert figures["test_acc"] == pytest.approx(float(best.best_model_score))


def test_fit_goes_back_to_an_earlier_checkpoint_in_the_same_process(tmp_path):
    L.seed_everything(1)
    module = User()
    fit(module, lc.NeuronPruning(0.6), every_epoch(tmp_path / "a"), max_epochs=5)
    end, journal = {k: v.clone() for k, v in module.state_dict().items()}, lc.explain(module)
    fit(module, lc.NeuronPruning(0.6), max_epochs=5, ckpt_path=tmp_path / "a" / "epoch=1.ckpt")
    assert same(end, dict(module.state_dict()))
    assert lc.explain(module) == journal


def test_the_metric_in_a_files_name_is_that_of_the_weights_in_the_file(tmp_path):
    names = ModelCheckpoint(tmp_path, filename="{epoch}-{val_acc:.4f}", save_top_k=-1)
    fit(User(), lc.WeightPruning(0.8), names, max_epochs=4)
    for path in tmp_path.glob("*.ckpt"):
        assert accuracy(lc.load_from_checkpoint(User, path)) == pytest.approx(
            float(re.search(r"acc=(.*)\.ckpt", str(path))[1]), abs=1e-4
        )


def test_the_metric_is_true_under_an_average_and_the_average_has_the_zeros(tmp_path):
    names = ModelCheckpoint(tmp_path, filename="{epoch}-{val_acc:.4f}", save_top_k=-1)
    module = User()
    fit(module, lc.WeightPruning(0.8), EMAWeightAveraging(decay=0.9), names, max_epochs=5)
    scores = set()
    for path in sorted(tmp_path.glob("*.ckpt")):
        loaded = lc.load_from_checkpoint(User, path)
        scores.add(re.search(r"acc=(.*)\.ckpt", str(path))[1])
        assert accuracy(loaded) == pytest.approx(float(re.search(r"acc=(.*)\.ckpt", str(path))[1]), abs=1e-4)
        kept = torch.cat([p.flatten() for p in loaded.parameters() if p.dim() > 1])
        if "epoch=4" in path.name:
            assert (kept == 0).float().mean() == pytest.approx(0.8, abs=1e-3)
    assert len(scores) > 1
    final = torch.cat([p.flatten() for p in module.parameters() if p.dim() > 1])
    assert (final == 0).float().mean() == pytest.approx(0.8, abs=1e-3)


def test_resume_under_an_average_is_exact(tmp_path):
    L.seed_everything(1)
    whole = fit(User(), lc.WeightPruning(0.8), EMAWeightAveraging(decay=0.9), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2)
    resumed = fit(
        User(), lc.WeightPruning(0.8), EMAWeightAveraging(decay=0.9), max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt"
    )
    assert same(dict(whole.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict()))


def test_target_checkpoint_keeps_epochs_on_target_only(tmp_path):
    best = TargetCheckpoint(tmp_path, monitor="val_acc", mode="max", filename="{epoch}")
    last = ModelCheckpoint(tmp_path / "all", save_last=True)
    fit(User(), lc.NeuronPruning(0.5), best, last, max_epochs=6)
    assert lc.Plan.of(lc.load_from_checkpoint(User, best.best_model_path)) == lc.Plan.of(
        lc.load_from_checkpoint(User, last.last_model_path)
    )
    never = TargetCheckpoint(tmp_path / "never", monitor="val_acc", mode="max")
    runner = trainer(lc.WeightPruning(0.5), never, StopAfterOneEpoch(), max_epochs=6)
    with pytest.warns(UserWarning, match="the fit ended before the schedule"):
        runner.fit(User(), loader(), validation_loader())
    assert never.best_model_path == ""


def test_a_trainer_without_our_callbacks_cannot_read_the_checkpoint_and_replay_can(tmp_path):
    module = User()
    fit(module, lc.NeuronPruning(0.5), every_epoch(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer().validate(User(), validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    fresh = User()
    trainer(Replay()).validate(fresh, validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    assert same(dict(fresh.state_dict()), dict(module.state_dict()))


def test_a_plan_of_another_network_is_refused_and_the_module_left_alone(tmp_path):
    fit(User("conv"), lc.NeuronPruning(0.5), every_epoch(tmp_path))
    module = User("mlp")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(lc.CompressionError, match="has no tensor"):
        trainer(Replay()).validate(module, validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    assert same(before, dict(module.state_dict()))


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_saved_after_the_fit_can_be_loaded(tmp_path, weights_only):
    module = User()
    runner = fit(module, lc.NeuronPruning(0.4), lc.WeightPruning(0.5))
    runner.save_checkpoint(tmp_path / "after.ckpt", weights_only=weights_only)
    assert same(dict(lc.load_from_checkpoint(User, tmp_path / "after.ckpt").state_dict()), dict(module.state_dict()))


def test_masks_are_not_pressed_on_a_file_that_has_none(tmp_path):
    dense = User()
    fit(dense, every_epoch(tmp_path), max_epochs=3)
    module = User()
    runner = fit(module, lc.WeightPruning(0.9), max_epochs=3)
    figures = runner.validate(module, validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)[0]
    assert figures["val_acc"] == pytest.approx(accuracy(dense))
    assert same(dict(module.state_dict()), dict(dense.state_dict()))


def test_a_fit_from_a_file_without_our_state_starts_over(tmp_path):
    fit(User(schedule=False), every_epoch(tmp_path), max_epochs=1)
    module, pruning = User(schedule=False), lc.WeightPruning(0.6)
    fit(module, pruning, max_epochs=3)
    fit(module, pruning, max_epochs=4, ckpt_path=tmp_path / "epoch=0.ckpt")
    weights = torch.cat([p.flatten() for p in module.parameters() if p.dim() > 1])
    assert (weights == 0).float().mean() == pytest.approx(0.6, abs=1e-3)

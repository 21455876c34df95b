"""Interrupted and resumed equals uninterrupted, bit for bit."""

import lightning as L
import pytest
import torch
from support import User, every_epoch, fit, loader, same
from torch.utils.data import DataLoader, IterableDataset

import lightning_compress as lc
from lightning_compress.training import Replay

CALLBACKS = {
    "weights": lambda: [lc.WeightPruning(0.8)],
    "neurons": lambda: [lc.NeuronPruning(0.5)],
    "apoz": lambda: [lc.NeuronPruning(0.4, criterion="apoz", of="params")],
    "both": lambda: [lc.WeightPruning(0.8), lc.NeuronPruning(0.4)],
    "gated": lambda: [lc.WeightPruning(0.8, recover=lc.Recovery("val_acc", tolerance=0.05, patience=1))],
    "gated-neurons": lambda: [lc.NeuronPruning(0.5, recover=lc.Recovery("val_acc", tolerance=0.02, patience=1))],
    "none": lambda: [Replay()],
}


def assert_equal_fits(one: L.Trainer, two: L.Trainer) -> None:
    assert same(one.lightning_module.state_dict(), two.lightning_module.state_dict())
    assert lc.Plan.of(one.lightning_module) == lc.Plan.of(two.lightning_module)
    for a, b in zip(one.optimizers, two.optimizers, strict=True):
        assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("callbacks", CALLBACKS)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, callbacks, optimizer):
    L.seed_everything(1)
    whole = fit(User(optimizer=optimizer), *CALLBACKS[callbacks](), every_epoch(tmp_path), max_epochs=6)
    L.seed_everything(2)
    resumed = fit(User(optimizer=optimizer), *CALLBACKS[callbacks](), max_epochs=6, ckpt_path=tmp_path / "epoch=3.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("moment", [{"monitor": "val_acc"}, {"save_on_train_epoch_end": True}, {"every_n_epochs": 1}])
@pytest.mark.parametrize("epoch", [0, 2])
def test_resume_is_exact_whenever_in_the_epochs_end_the_checkpoint_was_written(tmp_path, moment, epoch):
    L.seed_everything(1)
    checkpoint = every_epoch(tmp_path, **moment)
    whole = fit(User("conv"), lc.NeuronPruning(0.5), checkpoint, max_epochs=4)
    L.seed_everything(2)
    resumed = fit(User("conv"), lc.NeuronPruning(0.5), max_epochs=4, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("callbacks", ["weights", "apoz", "none"])
@pytest.mark.parametrize("step", [7, 13, 20])
def test_resume_in_mid_epoch_is_exact(tmp_path, callbacks, step):
    L.seed_everything(1)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    whole = fit(User(), *CALLBACKS[callbacks](), checkpoint, max_epochs=4)
    L.seed_everything(2)
    resumed = fit(User(), *CALLBACKS[callbacks](), max_epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_resume_is_exact_when_the_loader_has_a_generator_of_its_own(tmp_path, where):
    def data():
        generator = torch.Generator().manual_seed(5)
        if where == "loader":
            return loader(generator=generator)
        plain = loader()
        sampler = torch.utils.data.RandomSampler(plain.dataset, generator=generator)
        return DataLoader(plain.dataset, batch_size=40, sampler=sampler)

    L.seed_everything(1)
    whole = fit(User(), Replay(), every_epoch(tmp_path), train=data(), max_epochs=3)
    L.seed_everything(2)
    resumed = fit(User(), Replay(), train=data(), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_equal_fits(whole, resumed)


def test_resume_is_exact_with_workers(tmp_path):
    L.seed_everything(1)
    whole = fit(User(), Replay(), every_epoch(tmp_path), train=loader(num_workers=2), max_epochs=3)
    L.seed_everything(2)
    resumed = fit(User(), Replay(), train=loader(num_workers=2), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_equal_fits(whole, resumed)


def test_without_our_callback_a_shuffled_fit_does_not_resume_exactly(tmp_path):
    """The control: Lightning alone does not do it."""
    L.seed_everything(1)
    whole = fit(User(), every_epoch(tmp_path), max_epochs=3)
    L.seed_everything(2)
    resumed = fit(User(), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert not same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())


def test_iterable_loader_in_mid_epoch_is_not_promised(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(loader(shuffle=False).dataset)

        def __len__(self):
            return 400

    data = DataLoader(Stream(), batch_size=40)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=4)
    checkpoint.filename = "{step}"
    fit(User(), Replay(), checkpoint, train=data, max_epochs=1)
    runner = L.Trainer(
        max_epochs=1, callbacks=[Replay()], logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    with pytest.warns(UserWarning, match="iterable loader"):
        runner.fit(User(), data, ckpt_path=tmp_path / "step=4.ckpt")


def test_resume_with_another_length_keeps_the_schedule_and_warns(tmp_path):
    fit(User(), lc.WeightPruning(0.8), every_epoch(tmp_path), max_epochs=4)
    runner = L.Trainer(
        max_epochs=8,
        callbacks=[lc.WeightPruning(0.8)],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    with pytest.warns(UserWarning, match="made for 4 epochs"):
        runner.fit(User(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert runner.callbacks[-2].reached == pytest.approx(0.8, abs=1e-3)

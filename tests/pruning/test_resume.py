"""Interrupted and resumed equals uninterrupted, bit for bit, for all that keeps a state of its own."""

import lightning as L
import pytest
from support import User, every_epoch, fit, same

import lightning_compress as lc
from lightning_compress.training import Schedule

EARLY = Schedule("linear", end=0.4, every=0.5)
CALLBACKS = {
    "movement": lambda: lc.WeightPruning(0.8, criterion="movement"),
    "taylor": lambda: lc.WeightPruning(0.8, criterion="taylor"),
    "taylor-neurons": lambda: lc.NeuronPruning(0.4, criterion="taylor"),
    "apoz": lambda: lc.NeuronPruning(0.4, criterion="apoz", optimizer="reset"),
    "wanda": lambda: lc.WeightPruning(0.6, criterion="wanda"),
    "obs": lambda: lc.WeightPruning(0.6, criterion="obs"),
    "random": lambda: lc.WeightPruning(0.6, criterion="random"),
    "rigl": lambda: lc.WeightPruning(0.6, regrow={"grow": "rigl", "every": 0.7}, schedule=EARLY, max_step=0.6),
    "set": lambda: lc.WeightPruning(0.6, regrow={"grow": "set", "every": 0.7}, schedule=EARLY, max_step=0.6),
    "dense": lambda: lc.WeightPruning(0.6, regrow="dense", schedule=EARLY, max_step=0.6),
    "rewind": lambda: lc.WeightPruning(0.6, rewind=1, schedule=Schedule(start=2, every=1), max_step=0.6),
    "sensitivity": lambda: lc.WeightPruning(0.6, allocation="sensitivity"),
    "gated": lambda: lc.WeightPruning(0.8, recover=lc.Recovery("val_acc", tolerance=0.0, patience=1)),
    "gated-taylor": lambda: lc.WeightPruning(
        0.8, criterion="taylor", recover=lc.Recovery("val_acc", tolerance=0.0, patience=1)
    ),
}


def assert_equal_fits(one, two):
    assert same(one.lightning_module.state_dict(), two.lightning_module.state_dict())
    assert lc.Plan.of(one.lightning_module) == lc.Plan.of(two.lightning_module)
    for a, b in zip(one.optimizers, two.optimizers, strict=True):
        assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("name", CALLBACKS)
def test_resumed_fits_equal_the_uninterrupted_fit(tmp_path, name):
    """Stopped in mid-epoch: before, between and after cuts."""
    L.seed_everything(1)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=8)  # of ten in an epoch
    checkpoint.filename = "{step}"
    pruning = CALLBACKS[name]()
    whole = fit(User(), pruning, checkpoint, max_epochs=3)
    assert pruning.reached > 0.2 or name in ("dense", "gated", "gated-taylor")
    for step in (8, 16, 24):
        L.seed_everything(2)
        resumed = fit(User(), CALLBACKS[name](), max_epochs=3, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert_equal_fits(whole, resumed)

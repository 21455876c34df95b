"""What stops a fit in time, and files that are whole or not there."""

import errno
import os

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support import User, fit

import lightning_compress as lc
from lightning_compress.training import AtomicCheckpointIO, NaNGuard, NonFiniteError
from lightning_compress.training.nan_guard import first_non_finite


class Breaking(User):
    """Becomes NaN in epoch 1, batch 3: in the loss, or in a weight alone."""

    what = "loss"

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        broken = self.what == "loss" and (self.current_epoch, batch_idx) == (1, 3)
        return loss * float("nan") if broken else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.what == "weight" and (self.current_epoch, batch_idx) == (1, 3):
            self.network[4].weight.data[0, 0] = float("inf")


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_a_loss_that_is_nan_stops_the_fit_and_the_last_good_checkpoint_stays(tmp_path, output):
    class Module(Breaking):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if output == "tensor" else {"loss": loss}

    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, filename="x")
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 1, batch 3.*last good checkpoint is .*last\.ckpt"):
        fit(Module(), lc.WeightPruning(0.5), NaNGuard(), checkpoint)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 13
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())


def test_a_weight_that_is_infinite_is_named():
    module = Breaking()
    module.what = "weight"
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 1, batch 4.*'network\.4\.weight'"):
        fit(module, NaNGuard())


def test_weights_are_looked_at_where_the_loss_is_not():
    module = Breaking()
    module.what = "weight"
    with pytest.raises(NonFiniteError, match="weights are no longer finite in epoch 1"):
        fit(module, NaNGuard(every_n_steps=100))


def test_without_the_guard_lightning_goes_on():
    module = Breaking()
    fit(module)
    assert first_non_finite(module) is not None


def test_a_guard_that_never_looks_is_refused():
    with pytest.raises(lc.CompressionError, match="every_n_steps=0"):
        NaNGuard(every_n_steps=0)


def test_first_non_finite_sees_buffers_and_skips_integers():
    norm = torch.nn.BatchNorm1d(2)
    assert first_non_finite(norm) is None
    norm.running_var[1] = float("nan")
    assert first_non_finite(norm) == "running_var"


def test_checkpoints_are_written_atomically_in_a_fit(tmp_path):
    module = User()
    fit(module, ModelCheckpoint(tmp_path, save_last=True), plugins=[AtomicCheckpointIO()])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".ckpt", ".ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"].keys() == module.state_dict().keys()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, call):
    path = tmp_path / "last.ckpt"
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"epoch": 1}, path)
    former = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        saver.save_checkpoint({"epoch": 2, "weights": torch.zeros(1000)}, path)
    assert path.read_bytes() == former
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_saved_leaves_the_former_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle|lambda"):
        AtomicCheckpointIO().save_checkpoint({"bad": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("where", ["last.ckpt", "deep/er/last.ckpt"])
def test_folders_are_made(tmp_path, where):
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / where)
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / where) == {"epoch": 1}

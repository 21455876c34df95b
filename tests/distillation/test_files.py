"""Files of teachers, and what a distillation leaves in a checkpoint."""

import copy

import lightning as L
import pytest
import torch
from distillation.distilled import Rich, accuracy, distil, trained
from support import User, every_epoch, fit, same
from torch import nn

import lightning_compress as lc
from lightning_compress.distillation import Tap, Teacher, strip
from lightning_compress.training import Replay

TAPS = [Tap("network.0", "network.stem")]


def test_a_compressed_file_is_a_teacher(tmp_path):
    small = User()
    fit(small, lc.NeuronPruning(0.4), max_epochs=4)
    lc.save_compressed(small, tmp_path / "teacher.lcz")
    teacher = Teacher(str(tmp_path / "teacher.lcz"), into=User())
    module = User(schedule=False)
    distil(module, teacher, alpha=0.9, temperature=2.0, max_epochs=4)
    assert same(dict(teacher.network.state_dict()), dict(small.state_dict()))
    assert teacher.network.network[0].out_features < 32
    assert accuracy(module) > 0.4


def test_a_file_that_names_no_class_needs_a_network_to_be_loaded_into(tmp_path):
    lc.save_compressed(User(), tmp_path / "teacher.lcz")
    with pytest.raises(lc.CompressionError, match=r"Teacher\(path, into=Network\(\)\)"):
        distil(User(), tmp_path / "teacher.lcz")
    with pytest.raises(lc.CompressionError, match="of another network"):
        distil(User(), Teacher(tmp_path / "teacher.lcz", into=nn.Linear(64, 10)))


def test_a_stripped_checkpoint_has_no_adapters_and_all_the_rest(tmp_path):
    module = User()
    distil(module, None, lc.WeightPruning(0.5), every_epoch(tmp_path), taps=TAPS)
    path, to = tmp_path / "epoch=1.ckpt", tmp_path / "stripped.ckpt"
    before = path.read_bytes()
    assert strip(path, to) == 1
    assert path.read_bytes() == before
    whole, stripped = (torch.load(one, weights_only=True) for one in (path, to))
    assert whole["callbacks"].keys() - stripped["callbacks"].keys() == {"Distillation"}
    assert same(whole["state_dict"], stripped["state_dict"])
    assert same(whole["optimizer_states"], stripped["optimizer_states"])
    assert to.stat().st_size < path.stat().st_size
    assert same(dict(User.load_from_checkpoint(to).state_dict()), dict(module.state_dict()))
    assert strip(to) == 0
    with pytest.raises(lc.CompressionError, match="no checkpoint"):
        strip(tmp_path / "nowhere.ckpt")


def test_a_snapshot_in_a_checkpoint_is_stripped_too(tmp_path):
    gate = lc.Recovery("val_acc", tolerance=1e-9, patience=9, mode="min")
    distil(User(), None, lc.NeuronPruning(0.5, recover=gate), every_epoch(tmp_path), taps=TAPS, max_epochs=3)
    path = tmp_path / "epoch=2.ckpt"
    assert "adapters" in str(torch.load(path, weights_only=True)["callbacks"]["NeuronPruning"])
    strip(path)
    assert "adapters" not in str(torch.load(path, weights_only=True)["callbacks"])
    distil(User(), None, lc.NeuronPruning(0.5, recover=gate), taps=TAPS, max_epochs=4, fit_options={"ckpt_path": path})


def test_a_stripped_fit_goes_on_without_the_teacher_as_if_nothing_were_missing(tmp_path):
    def after(path):
        L.seed_everything(3, verbose=False)
        module = Rich()
        fit(module, Replay(), ckpt_path=path, max_epochs=3)
        return dict(module.state_dict())

    distil(Rich(), None, every_epoch(tmp_path), taps=TAPS)
    strip(tmp_path / "epoch=1.ckpt", tmp_path / "stripped.ckpt")
    assert same(after(tmp_path / "epoch=1.ckpt"), after(tmp_path / "stripped.ckpt"))
    distil(Rich(), taps=TAPS, max_epochs=3, fit_options={"ckpt_path": tmp_path / "stripped.ckpt"})


def test_the_teacher_itself_is_in_no_file(tmp_path):
    teacher = copy.deepcopy(trained())
    distil(User(), teacher, every_epoch(tmp_path), taps=TAPS)
    held = {tuple(value.shape) for value in teacher.state_dict().values() if value.dim() == 4}

    def shapes(value):
        if isinstance(value, torch.Tensor):
            return {tuple(value.shape)}
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return set().union(*map(shapes, parts))

    assert not held & shapes(torch.load(tmp_path / "epoch=1.ckpt", weights_only=True))

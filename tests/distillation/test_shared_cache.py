"""Caches built ahead of the fits that share them, from Python and by the command; numbered loaders."""

import sys

import lightning as L
import pytest
import torch
from distillation.distilled import Rich, distil, trained, trained_mlp
from support import User, digits, loader, same
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.distillation import Distillation, NumberedData, build_cache, numbered
from lightning_compress.zoo import Classifier, Digits


def batch_of_lists(samples):
    return [torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])]


def test_a_cache_built_ahead_is_the_one_that_a_fit_would_build(tmp_path):
    module = User()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    built = build_cache(Distillation(trained(), cache=tmp_path / "a"), module, numbered(loader()))
    assert same(dict(module.state_dict()), before), "nothing is trained"
    assert "training_step" not in vars(module)
    distil(User(), cache=tmp_path / "b", fit_options={"train": numbered(loader())})
    for name in ("cache.json", "logits.npy", "probes.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(built).endswith("400 samples, 1 teachers, 10 classes, " + str(built).split(", ")[-1])
    written = (tmp_path / "a" / "logits.npy").stat().st_mtime_ns
    build_cache(Distillation(trained(), cache=tmp_path / "a"), User(), numbered(loader()))
    assert (tmp_path / "a" / "logits.npy").stat().st_mtime_ns == written


def test_what_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(lc.CompressionError, match="no cache to build"):
        build_cache(Distillation(trained()), User(), numbered(loader()))
    build_cache(Distillation(trained(), cache=tmp_path / "a"), User(), numbered(loader()))
    with pytest.raises(lc.CompressionError, match="is stale"):
        build_cache(Distillation(trained_mlp(), cache=tmp_path / "a"), User(), numbered(loader()))


def test_a_random_member_is_drawn_from_a_cache_of_all(tmp_path):
    several = [trained(), trained_mlp()]

    def after(cache):
        L.seed_everything(5, verbose=False)
        module = Rich()
        distil(module, several, cache=cache, pool="random", fit_options={"train": numbered(loader(shuffle=False))})
        return module.state_dict()

    cached, asked = after(tmp_path / "cache"), after(None)
    assert all(torch.allclose(cached[name].float(), asked[name].float(), atol=2e-2) for name in asked)
    distil(User(), several, cache=tmp_path / "cache", pool="vote", fit_options={"train": numbered(loader())})


def test_a_numbered_loader_gives_the_same_batches_with_their_numbers():
    images, labels = digits()
    data = TensorDataset(images[:50], labels[:50])
    for options in ({"collate_fn": batch_of_lists}, {"drop_last": True}, {"num_workers": 1}):
        plain = DataLoader(data, 8, **options)
        pairs = list(zip(plain, numbered(plain), strict=True))
        for (inputs, targets), (batch, rows) in pairs:
            assert torch.equal(inputs, batch[0])
            assert torch.equal(targets, batch[1])
            assert torch.equal(images[rows], inputs)
    weighted = DataLoader(data, batch_sampler=[[3, 1], [2]])
    assert [batch.rows.tolist() for batch in numbered(weighted)] == [[3, 1], [2]]
    with pytest.raises(lc.CompressionError, match="batch_size=None"):
        numbered(DataLoader(data, batch_size=None))


def test_numbered_data_is_the_data_module_that_it_holds(tmp_path):
    data = NumberedData(Digits(batch_size=50))
    assert data.num_classes == 10
    assert not hasattr(data, "nonsense")
    module = Classifier("lenet_300_100")
    runner = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                       callbacks=[Distillation(torch.nn.Sequential(torch.nn.Flatten(), trained_mlp()),
                                               cache=tmp_path / "cache")])  # fmt: skip
    runner.fit(module, datamodule=data)
    (figures,) = runner.test(module, datamodule=data, verbose=False)
    assert figures["test_acc"] > 0.6


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command, in this process and in an empty folder that holds a teacher."""
    from lightning_compress.app.main import main

    monkeypatch.chdir(tmp_path)
    runner = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    runner.fit(Classifier("lenet_300_100"), datamodule=Digits())
    runner.save_checkpoint("teacher.ckpt")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning-compress", *arguments])
        return main()

    return run


def test_one_command_builds_what_the_runs_of_a_sweep_share(command, tmp_path, capfd):
    recipe = ("recipe=temperature", "teacher=teacher.ckpt")
    assert command("cache", *recipe) == 0
    assert "outputs/caches/temperature: 1077 samples, 1 teachers, 10 classes" in capfd.readouterr().out
    cache = tmp_path / "outputs" / "caches" / "temperature" / "logits.npy"
    written = cache.stat().st_mtime_ns
    short = ("logger=csv", "stages.student.epochs=2")
    assert command(*recipe, *short, "callbacks.teacher.temperature=2") == 0
    assert command(*recipe, *short, "callbacks.teacher.temperature=8", "seed=4") == 0
    assert cache.stat().st_mtime_ns == written
    assert not (tmp_path / "config.json").exists()
    page = next((tmp_path / "outputs" / "temperature").rglob("report.html")).read_text()
    assert "Student and teachers" in page


def test_the_command_says_what_is_wrong(command, capfd):
    assert command("cache", "recipe=iterative_pruning") == 1
    assert "No callback of this recipe reads a cache" in capfd.readouterr().err
    assert command("cache", "recipe=temperature", "teacher=nowhere.ckpt") == 1
    assert "There is no checkpoint 'nowhere.ckpt'" in capfd.readouterr().err
    assert command("cache", "recipe=temperature", "data=digits", "teacher=teacher.ckpt") == 1
    assert "Indexed" in capfd.readouterr().err

"""A cache gives what the teachers would have said, and refuses to give anything else."""

import json

import lightning as L
import pytest
import torch
from distillation.distilled import Rich, distil, trained, trained_mlp
from support import User, digits, fit, same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.distillation import Distillation, Indexed, Teacher
from lightning_compress.distillation.cache import TeacherCache, describe, write_cache


def noisy(sample):
    image, label = sample
    return image + 0.05 * torch.randn(image.shape), label


def data(count=400, transform=None, views=1, **options):
    images, labels = digits()
    indexed = Indexed(TensorDataset(images[:count], labels[:count]), transform, views=views, **options)
    return DataLoader(indexed, 40, shuffle=True)


def weights_after(cache, *, train=None, teachers=None, **options):
    L.seed_everything(5, verbose=False)
    module = Rich()
    callback = Distillation(teachers or trained(), cache=cache, **options)
    fit(module, callback, train=train or data(), max_epochs=2)
    return module.state_dict(), callback


def close(one, two, tolerance=2e-2):
    return all(torch.allclose(one[key].float(), two[key].float(), atol=tolerance) for key in one)


def test_what_is_read_is_what_the_teachers_would_have_said(tmp_path):
    asked, _ = weights_after(None)
    built, _ = weights_after(tmp_path / "cache")
    read, callback = weights_after(tmp_path / "cache")
    assert same(dict(built), dict(read))
    assert close(asked, read)
    assert not same(dict(asked), dict(read)), "half precision"
    assert callback.engine.cache is not None


def test_the_teachers_are_not_asked_while_a_cache_is_read(tmp_path):
    weights_after(tmp_path / "cache")
    asked = []
    handle = trained().register_forward_hook(lambda *_: asked.append(1))
    weights_after(tmp_path / "cache", fidelity=False)
    handle.remove()
    assert len(asked) == 1, "once, to see that the classes fit"


@pytest.mark.parametrize("pool", ["mean_probabilities", "vote"])
def test_an_ensembles_members_are_kept_apart(tmp_path, pool):
    """Pool and temperature can be others in each run of a sweep."""
    several = [trained(), trained_mlp()]
    weights_after(tmp_path / "cache", teachers=several)
    read, _ = weights_after(tmp_path / "cache", teachers=several, pool=pool, temperature=2.0)
    asked, _ = weights_after(None, teachers=several, pool=pool, temperature=2.0)
    assert close(read, asked)


def test_views_are_augmentations_that_teachers_and_student_share(tmp_path):
    train = data(transform=noisy, views=3)
    asked, _ = weights_after(None, train=train)
    read, _ = weights_after(tmp_path / "cache", train=data(transform=noisy, views=3))
    assert close(asked, read)
    views = [train.dataset.row(row).batch[0] for row in range(3)]
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[1], train.dataset.row(1).batch[0])
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["rows"] == 1200


def test_an_augmentation_that_the_cache_does_not_know_is_refused(tmp_path):
    class Augmenting(User):
        def training_step(self, batch, batch_idx):
            images, labels = batch
            return super().training_step((images + 0.05 * torch.randn_like(images), labels), batch_idx)

    with pytest.raises(lc.CompressionError, match="not what the teachers saw"):
        distil(Augmenting(), cache=tmp_path / "cache", fit_options={"train": data()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": trained_mlp()}, "its teachers is"),
        ({"teachers": Teacher(trained(), classes=[*range(9), -1])}, "its teachers is"),
        ({"train": "fewer"}, "its rows is 400, this fit's 200"),
        ({"train": "augmented"}, "its augmentation is '1 views, none', this fit's '1 views, noisy'"),
        ({"top_k": 3}, "its top_k is None"),
    ],
)
def test_a_stale_cache_is_refused_before_the_first_step(tmp_path, options, message):
    weights_after(tmp_path / "cache")
    trains = {"fewer": data(200), "augmented": data(transform=noisy)}
    options = {**options, "train": trains.get(options.get("train"))}
    with pytest.raises(lc.CompressionError, match=message):
        weights_after(tmp_path / "cache", **options)


def test_a_training_set_without_numbers_is_refused(tmp_path):
    with pytest.raises(lc.CompressionError, match="Indexed"):
        distil(User(), cache=tmp_path / "cache")


def test_several_calls_a_step_cannot_be_kept(tmp_path):
    class Twice(User):
        def training_step(self, batch, batch_idx):
            self.network(batch[0])
            return super().training_step(batch, batch_idx)

    with pytest.raises(lc.CompressionError, match="calls the student 2 times"):
        distil(Twice(), cache=tmp_path / "cache", fit_options={"train": data()})
    assert not (tmp_path / "cache").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_largest_logits_of_many_classes_are_kept_with_the_mass_of_the_rest(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 6, 100, generator=generator)
    inputs = torch.rand(6, 4, generator=generator)
    description = describe("x", "none", 6, 5)
    write_cache(tmp_path / "cache", description, [(torch.arange(6), inputs, logits)])
    found = TeacherCache(tmp_path / "cache", description).read(torch.tensor([4, 2]), (inputs[[4, 2]],))
    expected, found = logits[0, [4, 2]].softmax(-1), found[0].softmax(-1)
    top = expected.topk(5).indices
    torch.testing.assert_close(found.gather(1, top), expected.gather(1, top), atol=2e-3, rtol=1e-2)
    assert len(found[0].unique()) <= 6


def test_a_student_learns_from_top_k(tmp_path):
    read, _ = weights_after(tmp_path / "cache", top_k=3)
    asked, _ = weights_after(None)
    assert close(read, asked, 0.2)


def test_unknown_classes_stay_unknown_in_half_precision(tmp_path):
    logits = torch.tensor([[[1e6, -1e6, -torch.inf]]])
    description = describe("x", "none", 1, None)
    write_cache(tmp_path / "cache", description, [(torch.arange(1), torch.ones(1, 2), logits)])
    found = TeacherCache(tmp_path / "cache", description).read(torch.tensor([0]), (torch.ones(1, 2),))
    assert found.isfinite().tolist() == [[[True, True, False]]]


def test_another_process_may_be_faster(tmp_path):
    description = describe("x", "none", 1, None)
    for value in (1.0, 2.0):
        logits = torch.full((1, 1, 3), value)
        write_cache(tmp_path / "cache", description, [(torch.arange(1), torch.ones(1, 2), logits)])
    found = TeacherCache(tmp_path / "cache", description).read(torch.tensor([0]), (torch.ones(1, 2),))
    assert found.max() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_numbered_samples_need_a_distillation_only_to_lose_their_numbers():
    module = User()
    distil(module, nn.Linear(64, 10), fit_options={"train": data()}, max_epochs=1)
    with pytest.raises(lc.CompressionError, match="length above 0"):
        Indexed(TensorDataset(torch.zeros(0, 2)))
    with pytest.raises(lc.CompressionError, match="views=2"):
        Indexed(TensorDataset(torch.zeros(3, 2)), views=2)

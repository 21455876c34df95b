"""Splits that share nothing, normalisation from the right part, and refusals before anything is loaded."""

import sys

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.zoo import Digits, Textures, textures


@pytest.fixture(scope="module")
def patches():
    module = Textures()
    module.setup()
    return module


def parts(module):
    return module.train, module.validation, module.test


def made(**arguments):
    digits = Digits(**arguments)
    digits.setup()
    return digits


def test_digits_are_divided_into_every_picture_once():
    indices = torch.cat([torch.from_numpy(part) for part in made().indices])
    assert sorted(indices.tolist()) == list(range(1797))
    assert [len(part) for part in parts(made())] == [1077, 360, 360]


def test_digits_split_is_stratified():
    for part in parts(made()):
        shares = part.tensors[1].bincount() / len(part)
        assert (shares - 0.1).abs().max() < 0.01


def test_digits_split_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = made(seed=3)
    torch.manual_seed(2)
    two, other = made(seed=3), made(seed=4)
    assert all((a == b).all() for a, b in zip(one.indices, two.indices, strict=True))
    assert len(set(one.indices[2]) & set(other.indices[2])) < 150


def test_digits_are_normalised_on_the_training_part_alone():
    digits = made()
    train, _, test = (part.tensors[0] for part in parts(digits))
    assert train.mean().abs() < 1e-5
    assert abs(float(train.std()) - 1) < 1e-3
    assert float(test.mean()) != pytest.approx(0, abs=1e-6)


def test_digits_batches_have_the_documented_shape_and_type():
    digits = made(batch_size=16)
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        pictures, classes = next(iter(loader))
        assert pictures.shape == (16, *digits.input_shape)
        assert (pictures.dtype, classes.dtype) == (torch.float32, torch.int64)
        assert classes.max() < digits.num_classes


def test_only_training_batches_are_shuffled():
    digits = made()
    first = [next(iter(digits.train_dataloader()))[1].tolist() for _ in range(2)]
    assert first[0] != first[1]
    assert next(iter(digits.val_dataloader()))[1].tolist() == digits.validation.tensors[1][:32].tolist()


def test_folds_test_every_picture_exactly_once():
    tested = [made(folds=4, fold=fold, seed=1).indices[2] for fold in range(4)]
    assert sorted(index for part in tested for index in part) == list(range(1797))


def test_parts_of_a_fold_share_nothing_and_keep_the_ratio():
    train, validation, test = made(folds=5, fold=2).indices
    assert len({*train, *validation, *test}) == 1797 == len(train) + len(validation) + len(test)
    assert len(validation) == pytest.approx(len(train) / 3, abs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"shares": (0.5, 0.5)}, "three positive shares"),
        ({"shares": (0.8, 0.2, 0.0)}, "three positive shares"),
        ({"shares": (0.8, 0.2, 0.2)}, "sum to 1"),
        ({"shares": (float("nan"), 0.2, 0.2)}, "three positive shares"),
        ({"folds": 1}, "folds=1"),
        ({"folds": 5, "fold": 5}, "fold=5 is not one of folds=5"),
        ({"folds": 5, "fold": -1}, "fold=-1"),
        ({"fold": 2}, "fold=2 without folds"),
    ],
)
def test_digits_refuse_bad_arguments_in_the_constructor(arguments, message):
    with pytest.raises(CompressionError, match=message):
        Digits(**arguments)


def test_textures_have_equally_many_patches_of_every_class(patches):
    for part, count in zip(parts(patches), (180, 60, 60), strict=True):
        assert part.tensors[1].bincount().tolist() == [count] * patches.num_classes
        assert part.tensors[0].shape[1:] == patches.input_shape


def test_textures_are_normalised_by_patch(patches):
    for part in parts(patches):
        pixels = part.tensors[0].flatten(1)
        assert pixels.mean(1).abs().max() < 1e-4
        assert pixels.std(1).max() < 1 + 1e-3
        assert pixels.std(1).median() > 0.95
        assert pixels.isfinite().all()


def test_no_pixel_is_in_two_parts_of_textures():
    numbered = torch.arange(480 * 500.0).view(480, 500)
    parts = textures.cut_patches(numbered, (0.6, 0.2, 0.2), 400, torch.Generator().manual_seed(0))
    pixels = [set(part.flatten().tolist()) for part in parts]
    assert [len(part) for part in parts] == [240, 80, 80]
    assert pixels[0].isdisjoint(pixels[1])
    assert pixels[0].isdisjoint(pixels[2])
    assert pixels[1].isdisjoint(pixels[2])


def test_patches_of_textures_are_whole_squares_of_the_picture():
    numbered = torch.arange(480 * 500.0).view(480, 500)
    (patch, *_), _, _ = textures.cut_patches(numbered, (0.6, 0.2, 0.2), 20, torch.Generator().manual_seed(0))
    offsets = (patch - patch[0, 0, 0])[0]
    assert torch.equal(offsets, torch.arange(32).view(-1, 1) * 500.0 + torch.arange(32))


def test_textures_are_a_function_of_the_seed_alone(patches):
    torch.manual_seed(5)
    again, other = Textures(), Textures(seed=1)
    again.setup()
    other.setup()
    assert torch.equal(again.train.tensors[0], patches.train.tensors[0])
    assert not torch.equal(other.train.tensors[0], patches.train.tensors[0])


def test_textures_download_nothing(patches):
    assert "pooch" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patches": 2}, "patches=2"),
        ({"batch_size": -3}, "batch_size=-3"),
        ({"shares": (1.0, 0.0, 0.0)}, "three positive shares"),
    ],
)
def test_textures_refuse_bad_arguments_in_the_constructor(arguments, message):
    with pytest.raises(CompressionError, match=message):
        Textures(**arguments)


def test_textures_refuse_more_patches_than_the_smallest_picture_has():
    with pytest.raises(CompressionError, match="patches and 3000 are asked for"):
        Textures(patches=5000).setup()


def test_textures_without_scikit_image_name_the_extra(monkeypatch):
    monkeypatch.setattr(textures, "find_spec", lambda name: None)
    with pytest.raises(CompressionError, match=r'pip install "lightning-compress\[recipes\]"'):
        Textures()

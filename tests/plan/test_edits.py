"""Edits on every kind of tensor, their inverses, and what is refused."""

import copy

import lightning as L
import pytest
import torch
from plan.samples import Net, fingerprint, keep
from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan import Attribute, KeepIndices, RegrowIndices, Slice, named_tensors

TWO = torch.tensor([0, 2])


def test_keep_leaves_exactly_the_kept_entries():
    net = Net()
    before = {name: tensor.clone() for name, tensor in named_tensors(net).items()}
    keep(1, 3, 4).apply(net)
    for name, tensor in named_tensors(net).items():
        dim = 1 if name in ("second.weight", "twin.weight") else 0
        whole = name in ("second.bias", "twin.bias") or tensor.dim() == 0
        assert torch.equal(tensor, before[name] if whole else before[name].index_select(dim, torch.tensor([1, 3, 4])))
    assert (net.first.out_features, net.norm.num_features, net.twin.in_features) == (3, 3, 3)
    assert net(torch.randn(2, 5)).shape == (2, 4)


def test_keep_is_the_masked_network():
    net = Net().eval()
    net.norm.running_mean.uniform_(), net.norm.running_var.uniform_(0.5, 2)
    masked = copy.deepcopy(net)
    for tensor in (masked.second.weight, *masked.norm.parameters()):
        tensor.data[..., [0, 5]] = 0
    keep(1, 2, 3, 4).apply(net)
    values = torch.randn(7, 5)
    torch.testing.assert_close(net(values), masked(values))


def test_inverse_brings_zeros_back_and_the_edit_again_gives_the_same():
    net = Net()
    edit = keep(1, 3, 4)
    original = {name: tensor.clone() for name, tensor in named_tensors(net).items()}
    inverse = edit.apply(net)
    small = {name: tensor.clone() for name, tensor in named_tensors(net).items()}
    assert inverse.apply(net) == edit
    for name, tensor in named_tensors(net).items():
        assert tensor.shape == original[name].shape
        assert torch.equal(edit.carry(name, tensor), small[name]) or name.startswith(("twin", "again"))
    assert net.first.weight[[0, 2, 5]].count_nonzero() == 0
    edit.apply(net)
    assert all(torch.equal(tensor, small[name]) for name, tensor in named_tensors(net).items())


def test_a_tied_weight_stays_one_parameter_under_both_names():
    net = Net()
    inverse = keep(0, 5).apply(net)
    assert net.second.weight is net.twin.weight
    assert net.second.weight.shape == (4, 2)
    inverse.apply(net)
    assert net.second.weight is net.twin.weight


def test_a_tied_weight_is_refused_under_its_second_name():
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError, match=r"'twin.weight' is the same tensor as 'second.weight'"):
        KeepIndices((Slice("twin.weight", 1, 6, TWO),)).apply(net)
    assert fingerprint(net) == before


def test_kind_flags_and_marks_of_tensors_stay():
    net = Net()
    net.first.bias.requires_grad_(False)
    net.first.weight.no_decay = True
    order = list(dict(net.named_parameters()))
    keep(0, 1).apply(net)
    assert list(dict(net.named_parameters())) == order
    assert "scale" not in net.state_dict()
    assert not isinstance(net.scale, nn.Parameter)
    assert net.first.weight.requires_grad
    assert not net.first.bias.requires_grad
    assert net.first.weight.no_decay
    assert net.first.weight.is_leaf
    assert net.first.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_stays(dtype):
    net = Net().to(dtype)
    keep(0, 1).apply(net)
    assert {tensor.dtype for tensor in net.parameters()} == {dtype}


def test_transposed_convolution_is_cut_along_both_of_its_dimensions():
    net = nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(3, 2, 1))
    whole = net[0].weight.detach().clone()
    edit = KeepIndices(
        (
            Slice("0.weight", 0, 4, torch.tensor([1, 2, 3])),
            Slice("0.weight", 1, 3, TWO),
            Slice("0.bias", 0, 3, TWO),
            Slice("1.weight", 1, 3, TWO),
        ),
        (
            Attribute("0", "in_channels", 4, 3),
            Attribute("0", "out_channels", 3, 2),
            Attribute("1", "in_channels", 3, 2),
        ),
    )
    inverse = edit.apply(net)
    assert torch.equal(net[0].weight, whole[1:][:, TWO])
    assert net(torch.randn(1, 3, 4, 4)).shape == (1, 2, 5, 5)
    inverse.apply(net)
    expected = torch.zeros_like(whole)
    expected[1:, TWO] = whole[1:][:, TWO]
    assert torch.equal(net[0].weight, expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_with_the_cut_weights(kind):
    gates = 4 if kind is nn.LSTM else 3
    layer = kind(5, 6, batch_first=True)
    kept = torch.tensor([0, 2, 3])
    rows = torch.cat([kept + 6 * gate for gate in range(gates)])
    parts = [Slice(name, 0, 6 * gates, rows) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    parts.append(Slice("weight_hh_l0", 1, 6, kept))
    edit = KeepIndices(tuple(parts), (Attribute("", "hidden_size", 6, 3),))
    fresh = kind(5, 3, batch_first=True)
    inverse = edit.apply(layer)
    fresh.load_state_dict(layer.state_dict())
    values = torch.randn(2, 4, 5)
    assert torch.equal(layer(values)[0], fresh(values)[0])
    assert all(flat is one for flat, one in zip(layer._flat_weights, layer.parameters(), strict=True))
    inverse.apply(layer)
    assert layer(values)[0].shape == (2, 4, 6)
    assert all(flat is one for flat, one in zip(layer._flat_weights, layer.parameters(), strict=True))


def test_attributes_may_be_tuples():
    net = nn.LayerNorm(6)
    edit = KeepIndices(
        (Slice("weight", 0, 6, TWO), Slice("bias", 0, 6, TWO)), (Attribute("", "normalized_shape", (6,), (2,)),)
    )
    inverse = edit.apply(net)
    assert net(torch.randn(3, 2)).shape == (3, 2)
    inverse.apply(net)
    assert net.normalized_shape == (6,)


def test_edit_copies_its_indices():
    indices = torch.tensor([0, 1])
    part = Slice("x", 0, 3, indices)
    indices.fill_(7)
    assert part.kept.tolist() == [0, 1]


BAD_SLICES = {
    "negative dimension": (-1, 6, [0]),
    "too many dimensions": (8, 6, [0]),
    "nothing kept": (0, 6, []),
    "empty dimension": (0, 0, [0]),
    "out of range": (0, 6, [0, 6]),
    "negative": (0, 6, [-1, 0]),
    "twice": (0, 6, [1, 1]),
    "unsorted": (0, 6, [2, 1]),
    "huge": (0, 2**40, [0]),
}


@pytest.mark.parametrize("case", BAD_SLICES)
def test_a_slice_that_can_fit_nothing_cannot_be_made(case):
    dim, size, kept = BAD_SLICES[case]
    with pytest.raises(PlanError, match=r"'x'"):
        Slice("x", dim, size, torch.tensor(kept, dtype=torch.int64))


@pytest.mark.parametrize(
    "kept",
    [
        torch.tensor([0.0, 1.0]),
        torch.tensor([True]),
        torch.tensor(1),
        torch.tensor([[0]]),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([0, 1], device="meta"),
        torch.tensor([0, 1]).to_sparse(),
        torch.zeros(1, dtype=torch.int64).expand(2**40),
    ],
)
def test_indices_are_a_vector_of_int64(kept):
    with pytest.raises(PlanError):
        Slice("x", 0, 6, kept)


@pytest.mark.parametrize(
    ("name", "before", "after", "says"),
    [
        ("forward", 2, 1, "may not set 'forward'"),
        ("out_feature", 2, 1, "Did you mean 'out_features'"),
        ("training", 1, 1, "may not set"),
        ("out_features", 2, 3, "cannot shrink"),
        ("out_features", 2, 0, "cannot shrink"),
        ("normalized_shape", (2, 2), (2,), "cannot shrink"),
        ("normalized_shape", (2,), 2, "cannot shrink"),
    ],
)
def test_an_attribute_that_is_none_of_the_known_or_grows_is_refused(name, before, after, says):
    with pytest.raises(PlanError, match=says):
        Attribute("x", name, before, after)


def bad_edits():
    good = keep(0, 1)
    fits = good.slices[0]
    yield "no tensor", KeepIndices((Slice("nowhere.weight", 0, 6, TWO),))
    yield "no tensor", KeepIndices((fits, Slice("first.weigh", 0, 6, TWO)))
    yield r"shape \(6, 5\)", KeepIndices((Slice("first.weight", 0, 5, TWO),))
    yield r"shape \(6,\)", KeepIndices((Slice("first.bias", 1, 6, TWO),))
    yield r"shape \(\)", KeepIndices((Slice("norm.num_batches_tracked", 0, 1, torch.tensor([0])),))
    yield "same tensor", KeepIndices((fits, Slice("again.weight", 0, 6, TWO)))
    yield "no submodule 'third'", KeepIndices(good.slices, (Attribute("third", "out_features", 6, 2),))
    yield "out_features=6", KeepIndices(good.slices, (Attribute("first", "out_features", 5, 2),))
    yield "num_heads=None", KeepIndices(good.slices, (Attribute("first", "num_heads", 6, 2),))


@pytest.mark.parametrize(("says", "edit"), list(bad_edits()))
def test_a_failing_check_leaves_the_module_as_it_was(says, edit):
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError, match=says):
        edit.apply(net)
    assert fingerprint(net) == before


@pytest.mark.parametrize("inverse", [RegrowIndices(keep(0, 1)), RegrowIndices(keep(0, 1, 2, 3, 4, size=9))])
def test_an_inverse_that_does_not_fit_leaves_the_module_as_it_was(inverse):
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError):
        inverse.apply(net)
    assert fingerprint(net) == before


def test_an_edit_that_cuts_or_sets_twice_cannot_be_made():
    part, count = Slice("x", 0, 6, TWO), Attribute("y", "groups", 6, 2)
    with pytest.raises(PlanError, match="'x' is cut twice along dimension 0"):
        KeepIndices((part, part))
    with pytest.raises(PlanError, match="'y' is given twice its groups"):
        KeepIndices((part,), (count, count))


def test_looking_for_a_module_runs_none_of_the_users_properties():
    module = L.LightningModule()
    module.layer = nn.Linear(2, 3)
    edit = KeepIndices((Slice("layer.bias", 0, 3, TWO),), (Attribute("trainer", "out_features", 3, 2),))
    with pytest.raises(PlanError, match="no submodule 'trainer'"):
        edit.apply(module)


def test_edits_are_equal_if_all_they_do_is_equal():
    assert keep(0, 1) == keep(0, 1)
    assert hash(keep(0, 1)) == hash(keep(0, 1))
    assert keep(0, 1) != keep(0, 2)
    assert keep(0, 1) != keep(0, 1, label="other")
    assert Slice("x", 0, 3, TWO) != "x"

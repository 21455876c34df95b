"""Masks: exact zeros on every dtype, through edits, moves and checkpoints."""

import copy

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Attribute, KeepIndices, Plan, Record, ReplaceModule, Slice
from lightning_compress.pruning import Masks


def network():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return net, Masks(net)


def every_other(tensor):
    return (torch.arange(tensor.numel()) % 2 == 0).view_as(tensor)


def cut():
    kept = torch.tensor([0, 2])
    slices = (Slice("0.weight", 0, 3, kept), Slice("0.bias", 0, 3, kept), Slice("2.weight", 1, 3, kept))
    return KeepIndices(slices, (Attribute("0", "out_features", 3, 2), Attribute("2", "in_features", 3, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_positive_and_nan_does_not_survive(dtype):
    net, masks = network()
    net.to(dtype)
    weight = net[0].weight
    with torch.no_grad():
        weight.fill_(-1)
        weight[0, 1], weight[1, 1], weight[2, 1] = float("nan"), float("inf"), -0.0
    masks.set({"0.weight": every_other(weight)})
    dead = weight[~every_other(weight)]
    assert dead.tolist() == [0.0] * 6
    assert not dead.signbit().any()
    assert (weight[every_other(weight)] == -1).all()


def test_memory_format_does_not_matter():
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    mask = every_other(net.weight)
    Masks(net).set({"weight": mask})
    assert (net.weight[~mask] == 0).all()
    assert (net.weight[mask] != 0).all()


def test_gradients_and_the_parameter_itself_stay():
    net, masks = network()
    weight = net[0].weight
    masks.set({"0.weight": every_other(weight)})
    assert net[0].weight is weight
    net(torch.randn(5, 4)).sum().backward()
    assert weight.grad is not None
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_masks_shrink_with_the_network_and_what_comes_back_is_alive():
    net, masks = network()
    record = Record.of(net)
    record.followers.append(masks)
    whole = {"0.weight": every_other(net[0].weight), "2.weight": every_other(net[2].weight)}
    masks.set(whole)
    record.apply(cut())
    assert masks.reshaped
    assert torch.equal(masks.keep("0.weight", net[0].weight), whole["0.weight"][[0, 2]])
    assert torch.equal(masks.keep("2.weight", net[2].weight), whole["2.weight"][:, [0, 2]])
    with torch.no_grad():
        net[0].weight.fill_(1)
    masks.apply_()
    assert torch.equal(net[0].weight != 0, whole["0.weight"][[0, 2]])
    record.undo()
    assert torch.equal(masks.keep("0.weight", net[0].weight)[[0, 2]], whole["0.weight"][[0, 2]])
    assert masks.keep("0.weight", net[0].weight)[1].all()


def test_a_change_that_fails_leaves_the_masks_as_they_were():
    net, masks = network()

    class Stubborn:
        def follow(self, edit):
            raise RuntimeError

    record = Record.of(net)
    record.followers += [masks, Stubborn()]
    masks.set({"0.weight": every_other(net[0].weight)})
    weight, zeros = net[0].weight, masks.zeros
    with pytest.raises(RuntimeError):
        record.apply(cut())
    assert masks.zeros == zeros
    with torch.no_grad():
        weight.fill_(1)
    masks.apply_()
    assert torch.equal(net[0].weight != 0, every_other(weight))


def test_a_replaced_layer_has_no_mask_any_more():
    net, masks = network()
    record = Record.of(net)
    record.followers.append(masks)
    masks.set({"0.weight": every_other(net[0].weight), "2.weight": every_other(net[2].weight)})
    record.apply(ReplaceModule("0", {"type": "Linear", "arguments": {"in_features": 4, "out_features": 3}}))
    assert masks.zeros == 3
    assert masks.keep("0.weight", net[0].weight).all()


def test_state_comes_back_bit_for_bit(tmp_path):
    net, masks = network()
    masks.set({"0.weight": every_other(net[0].weight), "2.bias": torch.tensor([True, False])})
    torch.save(masks.to_state(), tmp_path / "masks")
    state = torch.load(tmp_path / "masks", weights_only=True)
    assert state["0.weight"][1].numel() == 2  # one bit an entry
    other, others = network()
    others.from_state(state)
    assert torch.equal(others.keep("0.weight", other[0].weight), every_other(other[0].weight))
    assert others.zeros == masks.zeros == 7
    assert other[2].bias[1] == 0


def test_masks_that_do_not_fit_are_refused_and_the_present_ones_stay():
    net, masks = network()
    masks.set({"0.weight": every_other(net[0].weight)})
    for bad in ({"nowhere": torch.ones(2, dtype=torch.bool)}, {"0.weight": torch.ones(2, 2, dtype=torch.bool)}):
        with pytest.raises(CompressionError, match="the module has no such parameter"):
            masks.set(bad)
    assert masks.zeros == 6
    masks.apply_()


def test_a_tied_parameter_is_masked_under_every_name_in_a_checkpoint():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    masks = Masks(net)
    keep = every_other(net[0].weight)
    masks.set({"0.weight": keep})
    dense = {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}
    for name in ("0.weight", "1.weight"):
        assert torch.equal(masks.masked(name, dense[name]) != 0, keep)
    assert masks.masked("1.bias", dense["1.bias"]) is dense["1.bias"]
    assert dense["0.weight"].all()


def test_no_tensor_of_ours_is_on_the_module():
    net, masks = network()
    before = set(net.state_dict())
    masks.set({"0.weight": every_other(net[0].weight)})
    assert set(copy.deepcopy(net).state_dict()) == before
    assert len(Plan.of(net)) == 0

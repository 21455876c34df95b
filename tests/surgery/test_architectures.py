"""Forty architectures: every group that is found is cut, proved, trained on, taken back and replayed."""

import copy

import pytest
import torch
from surgery.architectures import ARCHITECTURES, build
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Plan, Record, named_tensors
from lightning_compress.surgery import TracingInput, find_groups, merge, verify_edit
from lightning_compress.surgery.ports import is_depthwise

ISSUE = {
    *("lenet_5", "vgg", "resnet", "wide_resnet", "resnext", "se_resnet", "mobilenet_v1", "mobilenet_v2"),
    *("efficientnet", "squeezenet", "densenet", "inception", "shufflenet_v1", "shufflenet_v2", "xception", "convnext"),
    *("unet", "group_norm", "gpt", "lstm", "bilstm_two_layers", "gru", "vit_multihead_attention"),
}


def call(network, value):
    return TracingInput("", (value,), {}).outputs(network)


def half(groups, share=0.5):
    """A random part of every group, in one edit."""
    generator = torch.Generator().manual_seed(1)
    edits = []
    for group in groups:
        picks = torch.randperm(group.size, generator=generator)[: max(1, round(group.size * share))]
        edits.append(group.keep(picks.sort().values))
    return merge(edits)


def masked_(network, edit):
    """Written apart from the package: what the edit takes out is zero."""
    tensors = named_tensors(network)
    with torch.no_grad():
        for part in edit.slices:
            for index in set(range(part.size)) - set(part.kept.tolist()):
                tensors[part.tensor].select(part.dim, index).zero_()


def off_by(one, two):
    pairs = list(zip(one, two, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def test_the_architectures_that_issue_6_lists_are_there():
    assert set(ARCHITECTURES) >= ISSUE
    assert len(ARCHITECTURES) >= 30


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request):
    network, value = build(request.param)
    return network, value, find_groups(network, TracingInput("", (value,), {}))


def test_something_of_every_network_can_be_taken_out_and_the_rest_has_a_reason(case):
    network, _, groups = case
    assert len(groups) > 0, groups.skipped
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.RNNBase, nn.MultiheadAttention)
    made = {layer for group in groups for layer in group.producers} | set(groups.skipped)
    for name, layer in network.named_modules():
        depthwise = is_depthwise(layer)
        assert name in made or depthwise or not isinstance(layer, kinds), name
    assert all(reason for reason in groups.skipped.values())


def test_each_group_by_itself_computes_what_the_masked_network_does(case):
    network, value, groups = case
    for group in groups:
        edit = half([group])
        masked, cut = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
        masked_(masked, edit)
        edit.apply(cut)
        with torch.no_grad():
            assert off_by(call(masked, value), call(cut, value)) <= 1e-5, group.name


def test_all_groups_together_are_cut_verified_and_trained_on(case):
    network, value, groups = case
    edit = half(groups)
    verify_edit(network, edit, TracingInput("", (value,), {}))
    cut = copy.deepcopy(network)
    edit.apply(cut)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in network.parameters())
    optimizer = torch.optim.Adam(cut.parameters(), 1e-3)
    before = [parameter.detach().clone() for parameter in cut.parameters()]
    sum(output.square().sum() for output in call(cut, value)).backward()
    optimizer.step()
    moved = [bool((a != b).any()) for a, b in zip(before, cut.parameters(), strict=True)]
    with_gradient = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in cut.parameters()]
    assert moved == with_gradient
    assert any(moved)


def test_a_cut_is_taken_back_bit_for_bit(case):
    network, value, groups = case
    cut = copy.deepcopy(network).eval()
    weights = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    with torch.no_grad():
        expected = call(cut, value)
        Record.of(cut).apply(half(groups))
        call(cut, value)
        Record.of(cut).undo()
        cut.load_state_dict(weights)
        assert all(torch.equal(a, b) for a, b in zip(expected, call(cut, value), strict=True))
    assert repr(cut) == repr(copy.deepcopy(network).eval())
    assert len(Plan.of(cut)) == 0


def test_the_plan_gives_a_fresh_network_the_same_shape(case, tmp_path):
    network, value, groups = case
    cut, fresh = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    Record.of(cut).apply(half(groups))
    torch.save({"plan": Plan.of(cut).to_state(), "weights": cut.state_dict()}, tmp_path / "cut.pt")
    file = torch.load(tmp_path / "cut.pt", weights_only=True)
    Plan.from_state(file["plan"]).apply_to(fresh)
    fresh.load_state_dict(file["weights"])
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(call(cut, value), call(fresh, value), strict=True))


def test_a_cut_network_can_be_cut_again(case):
    network, value, groups = case
    cut = copy.deepcopy(network)
    half(groups, 0.7).apply(cut)
    again = find_groups(cut, TracingInput("", (value,), {}))
    assert len(again) > 0
    assert {layer for group in again for layer in group.producers} <= {n for group in groups for n in group.producers}
    verify_edit(cut, half(again), TracingInput("", (value,), {}))


def test_units_that_cannot_be_taken_out_are_refused_by_name(case):
    _, _, groups = case
    for layer in groups.skipped:
        with pytest.raises(CompressionError, match=f"No units of '{layer}' can be taken out"):
            groups.named(layer)


REFUSED_WIDTHS = {
    "convnext": ("0", "normalisation"),
    "gpt": ("blocks.0.mlp.2", "normalisation"),
    "transformer_encoder": ("0", "MultiheadAttention"),
    "mlp_mixer": ("across", "across other units"),
}


@pytest.mark.parametrize("name", REFUSED_WIDTHS)
def test_what_cannot_be_exact_says_why(name):
    network, value = build(name)
    layer, reason = REFUSED_WIDTHS[name]
    assert reason in find_groups(network, TracingInput("", (value,), {})).skipped[layer]


HEADS = {"vit_query_key_value": "query", "vit_fused_attention": "fused", "gpt": "fused"}


@pytest.mark.parametrize("name", HEADS)
def test_whole_heads_go_and_the_module_counts_fewer(name):
    network, value = build(name)
    group = find_groups(network, TracingInput("", (value,), {})).named(f"blocks.0.attention.{HEADS[name]}")
    group.keep(torch.tensor([0, 2])).apply(network)
    attention = network.blocks[0].attention
    assert attention.num_heads == 2
    assert attention.leave.in_features == 8
    assert attention.head_dim == 4

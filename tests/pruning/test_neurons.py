"""Judging and choosing neurons: the nearest reachable count, against brute force."""

import copy
from importlib.util import find_spec

import pytest
import torch
from plan.samples import fingerprint
from support import ConvNet, mlp
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.measure import check_runtime, measure
from lightning_compress.plan import Record
from lightning_compress.pruning.latency_target import UNIT, LatencyCount, learn_alignment
from lightning_compress.pruning.neurons import (
    COUNTS,
    Count,
    compared_among_alike,
    edit_for,
    select,
    weights_of_units,
)
from lightning_compress.surgery import TracingInput, find_groups

NETWORKS = {"mlp": mlp, "conv": ConvNet}
EXAMPLE = torch.randn(2, 64)


def setting(network):
    torch.manual_seed(0)
    net = NETWORKS[network]()
    tracing = TracingInput("", (EXAMPLE,), {})
    groups = find_groups(net, tracing)
    scores = {group.name: torch.rand(group.size) for group in groups}
    return net, tracing, groups, scores


def counter(net, tracing, groups, of="channels"):
    count = Count(net, tracing, of)
    return lambda kept: count.after(groups, kept)


def actual(net, of, groups, kept):
    """Counted on the network that was really cut."""
    net = copy.deepcopy(net)
    edit = edit_for(groups, kept)
    if edit is not None:
        edit.apply(net)
    if of == "channels":
        return sum(kept[group.name].numel() for group in groups)
    return sum(p.numel() for p in net.parameters()) if of == "params" else measure(net, EXAMPLE).macs


def all_prefixes(groups, scores, least):
    """The neurons that are left after 0, 1, 2, ... have gone, from the lowest score up."""
    order = []
    for group in groups:
        ranked = sorted(range(group.size), key=lambda unit: (float(scores[group.name][unit]), unit))
        order += [(float(scores[group.name][unit]), group.name, unit) for unit in ranked[: group.size - least]]
    order.sort(key=lambda one: one[0])
    for number in range(len(order) + 1):
        gone = {(name, unit) for _, name, unit in order[:number]}
        yield {g.name: torch.tensor([u for u in range(g.size) if (g.name, u) not in gone]) for g in groups}


@pytest.mark.parametrize("of", COUNTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_count_after_a_cut_is_that_of_the_cut_network(network, of):
    net, tracing, groups, scores = setting(network)
    count, before = Count(net, tracing, of), fingerprint(net)
    prefixes = list(all_prefixes(groups, scores, 1))
    for kept in [*prefixes[::5], prefixes[-1], prefixes[0]]:
        assert count.after(groups, kept) == actual(net, of, groups, kept)
    assert fingerprint(net) == before


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("of", COUNTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_nearest_reachable_amount_is_chosen(network, of, least):
    net, tracing, groups, scores = setting(network)
    count = Count(net, tracing, of)
    prefixes = list(all_prefixes(groups, scores, least))
    numbers = [count.after(groups, kept) for kept in prefixes]
    shares = [(numbers[0] - number) / numbers[0] for number in numbers]
    calls = []

    def counted(kept):
        calls.append(kept)
        return count.after(groups, kept)

    targets = [0.0, 0.01, 0.1, 0.37, 0.5, shares[3], shares[-2], shares[-1]]
    for target in targets:
        selection = select(groups, scores, counted, base=numbers[0], target=target, min_channels=least)
        assert abs(selection.reached - target) == min(abs(share - target) for share in shares)
        left = dict(next(kept for kept, share in zip(prefixes, shares, strict=True) if share == selection.reached))
        gone = {name: len(scores[name]) - len(units) for name, units in left.items()}
        assert selection.removed == {name: number for name, number in gone.items() if number}
        assert (selection.edit is None) == (not selection.removed)
        assert min(len(scores[name]) - number for name, number in gone.items()) >= least
    assert len(calls) <= len(targets) * 9  # halving, not trying all


def test_a_later_cut_counts_from_the_first_networks_size():
    net, tracing, groups, scores = setting("mlp")
    base = Count(net, tracing, "channels").after(groups, {g.name: torch.arange(g.size) for g in groups})
    first = select(groups, scores, counter(net, tracing, groups), base=base, target=0.25)
    first.edit.apply(net)
    groups = find_groups(net, tracing)
    scores = {group.name: torch.rand(group.size) for group in groups}
    second = select(groups, scores, counter(net, tracing, groups), base=base, target=0.5)
    assert (first.reached, second.reached) == (0.25, 0.5)
    assert sum(second.removed.values()) == 12
    same = select(groups, scores, counter(net, tracing, groups), base=base, target=0.25)
    assert same.edit is None


def test_ties_fall_to_the_earlier_neuron_of_the_earlier_layer():
    net, tracing, groups, _ = setting("mlp")
    scores = {group.name: torch.ones(group.size) for group in groups}
    selection = select(groups, scores, counter(net, tracing, groups), base=48, target=5 / 48)
    assert selection.removed == {"0": 5}
    assert selection.edit.slices[0].kept.tolist() == list(range(5, 32))


@pytest.mark.parametrize("balance", [0.25, 0.5, 0.9])
def test_no_layer_is_left_far_narrower_than_the_others(balance):
    """The neurons of one layer are all worth less than those of the other; its first cut has been made already."""
    net, tracing, groups, _ = setting("mlp")
    scores = {group.name: torch.rand(group.size) + number for number, group in enumerate(groups)}
    widths = {"0": 40, "4": 16}
    count = counter(net, tracing, groups)
    for target in (0.25, 0.5, 0.75, 0.9):
        kept = select(groups, scores, count, base=48, target=target, balance=balance, widths=widths).kept
        shares = {name: len(units) / widths[name] for name, units in kept.items()}
        gone = set(range(32)) - set(kept["0"].tolist())
        assert max(scores["0"][list(gone)]) <= min(scores["0"][kept["0"]])
        spare = shares["0"] - balance * sum(shares.values()) / 2
        assert spare > -1 / 40  # where both would be left with too little, whoever has more gives
        free = select(groups, scores, count, base=48, target=target).kept
        assert len(kept["0"]) == len(free["0"]) or spare < 1.5 / 40


def test_a_full_balance_cuts_all_layers_alike():
    net, tracing, groups, scores = setting("conv")
    base = sum(group.size for group in groups)
    kept = select(groups, scores, counter(net, tracing, groups), base=base, target=0.5, balance=1.0).kept
    assert all(abs(len(kept[group.name]) - group.size / 2) <= 1 for group in groups)
    lowest = select(
        groups, scores, counter(net, tracing, groups), base=base, target=1 - len(groups) / base, balance=1.0
    )
    assert all(len(units) == 1 for units in lowest.kept.values())  # the floor wins where the two cannot both be had


def test_what_cannot_be_taken_away_is_refused_with_what_can():
    net, tracing, groups, scores = setting("mlp")
    count = counter(net, tracing, groups)
    with pytest.raises(CompressionError, match=r"97.0% cannot be taken away.* at most 95.8%.*'4', has 16"):
        select(groups, scores, count, base=48, target=0.97)
    assert select(groups, scores, count, base=48, target=46 / 48).reached == 46 / 48
    with pytest.raises(CompressionError, match="with 16 left in each layer at most 33.3%"):
        select(groups, scores, count, base=48, target=0.5, min_channels=16)


def test_an_amount_that_is_exactly_all_there_is_can_be_reached():
    """In floating point 1 - 0.9 is less than 0.1."""
    net = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 2))
    groups = find_groups(net, TracingInput("", (torch.randn(2, 2),), {}))
    selection = select(
        groups, {"0": torch.rand(10)}, lambda kept: kept["0"].numel(), base=10, target=0.1, min_channels=9
    )
    assert selection.reached == 0.1


def test_weights_of_units_are_what_makes_them():
    net, _, groups, _ = setting("conv")
    stem = next(group for group in groups if group.name == "stem")
    weights = weights_of_units(net, stem)
    assert set(stem.producers) == {"stem", "branch"}  # added up
    expected = torch.cat([net.stem.weight.flatten(1), net.branch.weight.flatten(1)], dim=1)
    assert torch.equal(weights, expected)


def test_weights_of_units_of_a_transposed_convolution_and_of_one_before_a_flatten():
    net = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    groups = find_groups(net, TracingInput("", (torch.randn(2, 2, 2, 2),), {}))
    assert torch.equal(weights_of_units(net, groups.named("0")), net[0].weight.transpose(0, 1).flatten(1))
    assert torch.equal(weights_of_units(net, groups.named("3")), net[3].weight)


def test_weights_of_units_of_tied_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[3].weight = net[1].weight
    for group in find_groups(net, TracingInput("", (torch.randn(2, 3),), {})):
        columns = [net.get_submodule(name).weight for name in group.producers]
        assert torch.equal(weights_of_units(net, group), torch.cat(columns, dim=1))


def test_label_of_a_cut_of_many_layers_is_short():
    _, _, groups, _ = setting("mlp")
    assert edit_for(groups, {"0": torch.arange(30), "4": torch.arange(13)}).label == "5 units of 2 groups"
    assert edit_for(groups, {"0": torch.arange(32), "4": torch.arange(13)}).label == "3 of 16 units of '4'"
    assert edit_for(groups, {"0": torch.arange(32), "4": torch.arange(16)}) is None


def test_a_rounded_cut_leaves_multiples_or_everything():
    net, tracing, groups, scores = setting("conv")
    base = sum(group.size for group in groups)
    selection = select(groups, scores, counter(net, tracing, groups), base=base, target=0.4, round_to=4)
    sizes = {group.name: group.size for group in groups}
    assert all(len(kept) % 4 == 0 or len(kept) == sizes[name] for name, kept in selection.kept.items())
    plain = select(groups, scores, counter(net, tracing, groups), base=base, target=0.4)
    assert any(len(kept) % 4 for kept in plain.kept.values())
    for name, kept in selection.kept.items():  # the best stay
        gone = set(range(sizes[name])) - set(kept.tolist())
        assert not gone or max(scores[name][list(gone)]) <= min(scores[name][kept])


def test_a_target_to_be_met_at_least_is_exceeded_by_as_little_as_possible():
    net, tracing, groups, scores = setting("mlp")
    count, base = counter(net, tracing, groups), sum(group.size for group in groups)
    for target in (0.1, 0.333, 0.5):
        selection = select(groups, scores, count, base=base, target=target, at_least=True)
        assert selection.reached >= target
        assert selection.reached - 1 / base < target


def test_neurons_compared_among_alike_go_in_equal_shares():
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 20), nn.Linear(20, 2))
    tracing = TracingInput("", (torch.randn(3, 4),), {})
    groups = find_groups(net, tracing)
    scores = {group.name: (torch.rand(group.size) + 1) * 10.0**place for place, group in enumerate(groups)}
    ranked = compared_among_alike(net, groups, scores)
    assert ranked["0"].max() < ranked["2"].min()  # of one shape: compared with each other
    assert torch.equal(ranked["4"].argsort(), scores["4"].argsort())  # alone: only within itself
    assert ranked["4"].mean() == pytest.approx(0.5)
    later = compared_among_alike(net, groups, scores, {"0": 12, "2": 24, "4": 24})  # widths at first
    assert later["2"].max() < later["4"].min()
    assert later["0"].mean() == pytest.approx(0.5)


class Timed:
    """A machine that likes multiples of eight: each layer takes the time of the next multiple."""

    def after(self, groups, kept):
        return sum(-(-len(kept[group.name]) // 8) * 8 for group in groups) * 1000


def test_the_alignment_is_learned_from_the_times():
    net = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 2))
    tracing = TracingInput("", (torch.randn(3, 4),), {})
    groups = find_groups(net, tracing)
    macs = Count(net, tracing, "channels")
    assert learn_alignment(Timed(), macs, groups, share=0.45) == 8
    assert learn_alignment(macs, macs, groups, share=0.45) == 1


def test_latency_is_counted_side_by_side_with_the_uncut_network():
    net = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2))
    tracing = TracingInput("", (torch.randn(2, 64),), {})
    groups = find_groups(net, tracing)
    count = LatencyCount(net, tracing, runtime="eager", batch_size=16, rounds=5)
    small = {group.name: torch.arange(32) for group in groups}
    assert count.after(groups, small) < UNIT / 3
    Record.of(net).apply(edit_for(groups, small))
    groups = find_groups(net, tracing)
    everything = {group.name: torch.arange(group.size) for group in groups}
    again = LatencyCount(net, tracing, runtime="eager", batch_size=16, rounds=5)
    assert again.after(groups, everything) < UNIT / 3  # what was cut before counts too


def test_a_latency_that_cannot_be_measured_is_refused():
    tracing = TracingInput("", (), {"x": torch.randn(2, 4)})
    with pytest.raises(CompressionError, match="by position"):
        LatencyCount(nn.Linear(4, 2), tracing, runtime="eager", batch_size=1)
    with pytest.raises(CompressionError, match="Did you mean 'eager'"):
        check_runtime("eagr")
    if find_spec("onnxruntime") is None:
        with pytest.raises(CompressionError, match="pip install onnx onnxscript onnxruntime"):
            check_runtime("onnxruntime")

"""Statistics equal a direct computation on the whole data, however they were gathered."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_compress.errors import CompressionError
from lightning_compress.plan import KeepIndices, ReplaceModule, Slice
from lightning_compress.surgery import (
    InputStatistics,
    StatisticsCollector,
    TracingInput,
    find_groups,
    gather,
    group_zero_share,
)
from lightning_compress.zoo.lenet import LeNet5


def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 1, 6, 6, generator=generator) for _ in range(count)]


def same(one, two):
    for a, b in zip(one.parts(), two.parts(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_sums_equal_a_direct_computation():
    net, data = network(), batches()
    statistics = gather(net, data, ["2", "6"], second_moments=True)
    with torch.no_grad():
        maps = net[:2](torch.cat(data)).double()
        features = net.eval()[:6](torch.cat(data)).double()
    conv, linear = statistics["2"], statistics["6"]
    assert conv.count == 15 * 16
    assert conv.rows == 15 * 4
    assert linear.count == linear.rows == 15
    torch.testing.assert_close(conv.zero_share, (maps == 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(conv.mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(conv.variance, maps.var((0, 2, 3), correction=0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(linear.zero_share, (features == 0).double().mean(0))
    torch.testing.assert_close(linear.second_moment, features.T @ features / 15)
    unfolded = functional.unfold(maps, 3).transpose(1, 2).reshape(-1, 54)
    torch.testing.assert_close(conv.second_moment, unfolded.T @ unfolded / len(unfolded))
    assert 0 < conv.zero_share.min() < conv.zero_share.max() < 1


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 2},
        {"dilation": 2},
        {"stride": 2, "padding": 1, "dilation": 2},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": (1, 0), "stride": (1, 2), "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)])
def test_second_moments_explain_the_outputs_of_any_convolution(options, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, bias=False, **options).double()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    with StatisticsCollector(conv, [""], second_moments=True) as collector:
        outputs = conv(x).transpose(0, 1).flatten(1)
    statistics, weight = collector.statistics[""], conv.weight.flatten(1)
    assert statistics.rows == outputs.shape[1]
    torch.testing.assert_close(weight @ statistics.second_moment @ weight.T, outputs @ outputs.T / outputs.shape[1])


@pytest.mark.parametrize(
    ("conv", "shape"), [(nn.Conv1d(2, 3, 3, padding=1), (4, 2, 7)), (nn.Conv3d(2, 3, 2), (3, 2, 4, 4, 4))]
)
def test_second_moments_in_one_and_three_dimensions(conv, shape):
    x = torch.randn(shape)
    statistics = gather(nn.Sequential(conv), [x], ["0"], second_moments=True)["0"]
    with torch.no_grad():
        outputs = functional.conv1d(x, conv.weight, padding=1) if x.dim() == 3 else functional.conv3d(x, conv.weight)
    outputs, weight = outputs.transpose(0, 1).flatten(1).double(), conv.weight.detach().flatten(1).double()
    explained = weight @ statistics.second_moment @ weight.T
    torch.testing.assert_close(explained, outputs @ outputs.T / outputs.shape[1], rtol=1e-4, atol=1e-5)


def test_large_inputs_in_parts_give_the_same_moments(monkeypatch):
    data = [torch.randn(7, 1, 6, 6)]
    whole = gather(network(), data, ["2"], second_moments=True)["2"]
    monkeypatch.setattr("lightning_compress.surgery.patches.CHUNK", 100)
    same(whole, gather(network(), data, ["2"], second_moments=True)["2"])


def test_statistics_add_up_over_batches_and_merge():
    net, data = network(), batches()
    whole = gather(net, [torch.cat(data)], ["2"], second_moments=True)["2"]
    parts = [gather(net, [batch], ["2"], second_moments=True)["2"] for batch in data]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    one_pass = gather(net, data, ["2"], second_moments=True)["2"]
    for one in (merged, one_pass):
        assert (one.count, one.rows) == (whole.count, whole.rows)
        assert torch.equal(one.zeros, whole.zeros)
        torch.testing.assert_close(one.second_moment, whole.second_moment, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(one.variance, whole.variance, rtol=1e-5, atol=1e-8)


def test_state_survives_a_file(tmp_path):
    net, data = network(), batches()
    with StatisticsCollector(net, ["2", "6"], second_moments=True) as collector:
        net(data[0])
        torch.save(collector.state_dict(), tmp_path / "state.pt")
        state = collector.state_dict()
        zeros = state["2"]["zeros"].clone()
        net(data[1])
        expected = collector.statistics
        assert torch.equal(state["2"]["zeros"], zeros)
    with StatisticsCollector(net, ["2", "6"], second_moments=True) as resumed:
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        net(data[1])
    same(resumed.statistics["2"], expected["2"])


def test_a_state_that_does_not_fit_is_refused():
    net = network()
    collector = StatisticsCollector(net, ["2"])
    with pytest.raises(CompressionError, match="observes"):
        collector.load_state_dict(StatisticsCollector(net, ["6"]).state_dict())
    with pytest.raises(CompressionError, match="shapes"):
        collector.load_state_dict({"2": StatisticsCollector(net, ["6"]).state_dict()["6"]})
    with pytest.raises(CompressionError, match="fields"):
        collector.load_state_dict({"2": {"count": 3}})


def test_training_passes_are_observed_without_changing_them():
    net, reference = network(), network()
    for module in (net, reference):
        torch.manual_seed(5)
        collector = StatisticsCollector(net, ["2", "6"])
        if module is net:
            collector.attach()
            collector.attach()
        module(batches()[0]).sum().backward()
        collector.detach()
    for one, two in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_attached_twice_counts_once_and_pauses_and_resets():
    net = network()
    with StatisticsCollector(net, ["6"]) as collector:
        collector.attach()
        net(batches()[0])
        collector.enabled = False
        net(batches()[0])
        assert collector.statistics["6"].count == 5
    net(batches()[0])
    assert collector.statistics["6"].count == 5
    collector.reset()
    assert collector.statistics["6"].count == 0


def test_hooks_are_gone_after_an_exception():
    net = network()
    with pytest.raises(ValueError, match="inside"), StatisticsCollector(net, ["2"]):
        raise ValueError("inside")
    with pytest.raises(RuntimeError):
        gather(net, [torch.randn(1, 5)], ["2"])
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(module.training for module in net.modules())


def test_copies_and_pickles_of_an_observed_module_are_not_observed():
    net = network()
    with StatisticsCollector(net, ["2"]) as collector:
        for duplicate in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            duplicate(batches()[0])
        assert collector.statistics["2"].count == 0
        net(batches()[0])
        assert collector.statistics["2"].count == 5 * 16


def test_gathering_leaves_the_network_and_the_random_state():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net[1].eval()
    data = [(torch.randn(3, 4), "label"), [torch.randn(3, 4)]]
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    gather(net, data, ["2"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert [part.training for part in net.modules()] == [True, True, False, True]


def test_gathering_takes_a_forward_of_ones_own():
    net, data = nn.Sequential(nn.Linear(2, 2)), [{"x": torch.ones(3, 2)}]
    statistics = gather(net, data, ["0"], forward=lambda module, batch: module(batch["x"]))
    assert statistics["0"].mean.tolist() == [1, 1]


def test_layers_called_with_keywords_and_in_three_dimensions_are_observed():
    net = nn.Sequential(nn.Linear(2, 2))
    with StatisticsCollector(net, ["0"]) as collector:
        net[0](input=torch.ones(3, 5, 2))
    assert collector.statistics["0"].count == 15


def test_bad_requests_are_refused_before_anything_is_observed():
    net = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1, groups=2), "up": nn.ConvTranspose2d(2, 2, 1), "relu": nn.ReLU()})
    with pytest.raises(CompressionError, match="'conv'"):
        StatisticsCollector(net, ["con"])
    with pytest.raises(CompressionError, match="'relu'"):
        StatisticsCollector(net, ["relu"])
    with pytest.raises(CompressionError, match="'conv': second moments of a grouped"):
        StatisticsCollector(net, ["conv"], second_moments=True)
    with pytest.raises(CompressionError, match="'up': second moments of a transposed"):
        StatisticsCollector(net, ["up"], second_moments=True)
    with pytest.raises(CompressionError, match="no batches"):
        gather(net, [], ["conv"])


def test_statistics_of_nothing_are_refused():
    empty = InputStatistics.empty(nn.Linear(3, 2))
    for name in ("zero_share", "mean", "variance"):
        with pytest.raises(CompressionError, match="not read anything"):
            getattr(empty, name)
    with pytest.raises(CompressionError, match="second_moments=True"):
        _ = empty.second_moment
    with pytest.raises(CompressionError, match="cannot be merged"):
        empty.merge(InputStatistics.empty(nn.Linear(4, 2)))


def test_statistics_shrink_with_the_network():
    net, data = LeNet5(), [torch.randn(8, 1, 8, 8)]
    groups = find_groups(net, TracingInput("", (data[0],), {}))
    layers = ["conv2", "fc1", "fc2"]
    collector = StatisticsCollector(net, layers, second_moments=True)
    with collector:
        net(data[0])
        before = {name: own.to(torch.device("cpu")) for name, own in collector.statistics.items()}
        kept = torch.tensor([1, 4, 7])
        edit = groups.named("conv2").keep(kept)
        inverse = edit.apply(net)
        collector.follow(edit)
        features = (kept[:, None] * 4 + torch.arange(4)).flatten()
        same(collector.statistics["fc1"], before["fc1"].keep(features))
        same(collector.statistics["conv2"], before["conv2"])
        net(data[0])
        assert collector.statistics["fc1"].count == 16
        inverse.apply(net)
        collector.follow(inverse)
        assert collector.statistics["fc1"].count == 0
        assert collector.statistics["fc1"].zeros.shape == (200,)
        assert collector.statistics["fc2"].count == 16
        net(data[0])
    moments = before["conv2"].keep(kept).moments
    columns = (kept[:, None] * 9 + torch.arange(9)).flatten()
    assert torch.equal(moments, before["conv2"].moments[columns][:, columns])


def test_statistics_of_a_replaced_layer_start_again_or_end():
    net = network()
    with StatisticsCollector(net, ["2", "6"]) as collector:
        net(batches()[0])
        replacement = {"type": "Conv2d", "arguments": {"in_channels": 6, "out_channels": 4, "kernel_size": 3}}
        edit = ReplaceModule("2", replacement)
        edit.apply(net)
        collector.follow(edit)
        net(batches()[0])
        assert collector.statistics["2"].count == 5 * 16
        assert collector.statistics["6"].count == 10
        gone = ReplaceModule("6", {"type": "Identity"})
        gone.apply(net)
        collector.follow(gone)
        net(batches()[0])
    assert set(collector.statistics) == {"2"}


def test_the_zero_share_of_a_unit_is_the_mean_over_its_features():
    torch.manual_seed(0)
    net, data = LeNet5(), torch.randn(16, 1, 8, 8)
    groups = find_groups(net, TracingInput("", (data,), {}))
    statistics = gather(net, [data], ["conv2", "fc1", "fc2"])
    with torch.no_grad():
        maps = net.pool(net.relu(net.conv2(net.pool(net.relu(net.conv1(data))))))
    expected = (maps == 0).double().mean((0, 2, 3))
    torch.testing.assert_close(group_zero_share(groups.named("conv2"), statistics), expected)
    assert group_zero_share(groups.named("fc1"), statistics).shape == (500,)


def test_the_zero_share_is_averaged_over_consumers_behind_a_concatenation_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 3)
            self.joined, self.alone = nn.Linear(8, 2), nn.Linear(3, 2)

        def forward(self, x):
            one, two = self.one(x), torch.relu(self.two(x))
            return self.joined(torch.cat([one, two], 1)) + self.alone(torch.relu(two - 0.1))

    torch.manual_seed(0)
    net, x = Net(), torch.randn(32, 4)
    groups = find_groups(net, TracingInput("", (x,), {}))
    statistics = gather(net, [x], ["joined", "alone"])
    two = torch.relu(net.two(x)).detach()
    shares = [(value == 0).double().mean(0) for value in (two, torch.relu(two - 0.1))]
    torch.testing.assert_close(group_zero_share(groups.named("two"), statistics), (shares[0] + shares[1]) / 2)
    assert not group_zero_share(groups.named("one"), statistics).any()
    with pytest.raises(CompressionError, match="'alone'"):
        group_zero_share(groups.named("two"), {"joined": statistics["joined"]})


REDUCE = """
import sys, torch
from torch import nn
from lightning_compress.surgery import StatisticsCollector

folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
net, data = torch.load(f"{folder}/work.pt", weights_only=False)
with StatisticsCollector(net, ["2", "6"], second_moments=True) as collector:
    for batch in data[rank::2]:  # two batches on one rank, one on the other
        net(batch)
for turn in range(2):
    states = {name: own.state_dict() for name, own in collector.all_reduce().items()}
    torch.save(states, f"{folder}/{rank}-{turn}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_reduce_to_the_statistics_of_all_the_data(tmp_path):
    torch.save((network().eval(), batches()), tmp_path / "work.pt")
    command = [sys.executable, "-c", REDUCE, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=Path(__file__).parents[2]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    whole = gather(network(), batches(), ["2", "6"], second_moments=True)
    for file in tmp_path.glob("*-*.pt"):
        states = torch.load(file, weights_only=True)
        for name, state in states.items():
            same(InputStatistics.from_state(state), whole[name])
    assert len(list(tmp_path.glob("*-*.pt"))) == 4


def test_without_processes_reducing_copies():
    net = network()
    collector = StatisticsCollector(net, ["6"])
    reduced = collector.all_reduce()
    with collector:
        net(batches()[0])
    assert reduced["6"].count == 0
    assert not reduced["6"].total.any()


@pytest.mark.parametrize("gap", [nn.Identity(), nn.Flatten()])
def test_zeros_of_a_dropout_are_not_the_neurons_own(gap):
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.5), gap, nn.Linear(6, 2)).train()
    with StatisticsCollector(net, ["4"]) as collector:
        net(torch.randn(64, 4))
    assert collector.statistics["4"].zero_share.max() == 0
    assert collector.before_dropout == {}


def test_a_follower_that_is_put_back_has_its_statistics_again():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    collector = StatisticsCollector(net, ["2"])
    with collector:
        net(torch.randn(64, 4))
    before = collector.statistics["2"].zero_share.clone()
    kept = torch.tensor([0, 2, 5])
    edit = KeepIndices((Slice("0.weight", 0, 6, kept), Slice("0.bias", 0, 6, kept), Slice("2.weight", 1, 6, kept)))
    back = collector.follow(edit)
    assert collector.statistics["2"].zero_share.shape == (3,)
    back()
    assert torch.equal(collector.statistics["2"].zero_share, before)

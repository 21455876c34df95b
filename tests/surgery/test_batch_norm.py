"""Folding changes no output; recalibration gives the statistics of the data."""

import copy

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.surgery import TracingInput, fold_batchnorm_, recalibrate_batchnorm_
from lightning_compress.zoo.resnet import SmallResNet


def trained(module):
    """BatchNorms as after training; some gammas negative, one zero."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.2, 3)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2)
                nn.init.normal_(norm.bias)
                norm.weight.data[0] = 0
    return module


def relative(one, two):
    return ((one - two).abs().max() / one.abs().max()).item()


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 8, 3), nn.BatchNorm1d, (4, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d, (4, 3, 9, 9)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d, (4, 4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d, (4, 8, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(3, 8, 3), nn.BatchNorm3d, (2, 3, 5, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 8, 2, stride=2), nn.BatchNorm2d, (4, 3, 5, 5)),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d, (4, 4, 5, 5)),
    "linear": (lambda: nn.Linear(6, 8), nn.BatchNorm1d, (5, 6)),
    "linear_without_bias": (lambda: nn.Linear(6, 8, bias=False), nn.BatchNorm1d, (5, 6)),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_folding_is_exact(name, affine, traced):
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[name]
    net = trained(nn.Sequential(layer(), norm(8, affine=affine), nn.Tanh())).eval()
    x = torch.randn(shape)
    weight = net[0].weight
    expected = net(x)
    assert fold_batchnorm_(net, TracingInput("", (x,), {}) if traced else None) == ["1"]
    assert relative(expected, net(x)) <= 1e-6
    assert isinstance(net[1], nn.Identity)
    assert net[0].weight is weight


def test_a_residual_network_is_folded_whole():
    torch.manual_seed(0)
    net = trained(SmallResNet()).eval()
    x = torch.randn(2, 1, 8, 8)
    expected = net(x)
    names = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert fold_batchnorm_(net, TracingInput("", (x,), {})) == names
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert relative(expected, net(x)) <= 5e-6


class Branching(nn.Module):
    """The first convolution's output is read by more than its BatchNorm; the second one's is not."""

    def __init__(self):
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.two, self.norm_two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.one(x)
        return self.norm_two(self.two(torch.relu(self.norm_one(x)) + x))


def test_a_layer_that_something_else_reads_is_left():
    torch.manual_seed(0)
    net = trained(Branching()).eval()
    x = torch.randn(2, 1, 4, 4)
    expected = net(x)
    assert fold_batchnorm_(net, TracingInput("", (x,), {})) == ["norm_two"]
    assert relative(expected, net(x)) <= 1e-6


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x))))


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


LEFT = {
    "shared": (Shared, (2, 1, 3, 3)),
    "tied": (tied, (3, 4)),
    "no_statistics": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        (2, 1, 3, 3),
    ),
    "not_adjacent": (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), (2, 1, 3, 3)),
    "other_dimension": (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), (2, 5, 5)),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 1)), nn.BatchNorm2d(4)),
        (2, 1, 3, 3),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_folded_is_left_as_it_is(name):
    torch.manual_seed(0)
    make, shape = LEFT[name]
    net = trained(make())
    before = copy.deepcopy(net.state_dict())
    assert fold_batchnorm_(net, TracingInput("", (torch.randn(shape),), {})) == []
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_call_that_fails_changes_nothing():
    net = trained(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(CompressionError, match="does not run"):
        fold_batchnorm_(net, TracingInput("", (torch.randn(2, 3, 4, 4),), {}))
    assert isinstance(net[1], nn.BatchNorm2d)


def test_recalibration_gives_the_statistics_of_the_data():
    torch.manual_seed(0)
    net = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.ReLU()))
    batches = [(torch.randn(8, 1, 6, 6) * 3 + 1, torch.zeros(8)) for _ in range(5)]
    flags = [part.training for part in net.modules()]
    weights = copy.deepcopy(dict(net.named_parameters()))
    recalibrate_batchnorm_(net, batches)
    with torch.no_grad():
        maps = [net[0](x) for x, _ in batches]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    assert net[1].num_batches_tracked == 5
    assert net[1].momentum == 0.1
    assert [part.training for part in net.modules()] == flags
    assert all(torch.equal(weights[name], p) and p.grad is None for name, p in net.named_parameters())


def test_recalibration_keeps_dropout_off_and_the_random_state():
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2))
    state = torch.get_rng_state()
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    recalibrate_batchnorm_(net, [x], forward=lambda module, batch: module(batch))
    assert net[1].running_mean.tolist() == [2, 3]
    assert torch.equal(state, torch.get_rng_state())


def test_recalibration_without_reset_goes_on_with_the_average():
    norm, x = nn.BatchNorm1d(1), torch.tensor([[0.0], [2.0]])
    recalibrate_batchnorm_(norm, [x, x + 3])
    recalibrate_batchnorm_(norm, [x + 6], reset=False)
    assert norm.running_mean.item() == pytest.approx(4)
    assert norm.num_batches_tracked == 3


def test_recalibration_that_fails_leaves_the_statistics():
    net = trained(nn.Sequential(nn.BatchNorm1d(2)))
    net[0].eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CompressionError, match="no batches"):
        recalibrate_batchnorm_(net, [])
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        recalibrate_batchnorm_(net, [torch.randn(4, 2), torch.randn(1, 2)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net[0].training
    assert net[0].momentum == 0.1

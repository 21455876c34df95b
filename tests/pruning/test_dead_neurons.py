"""Neurons that never fire are counted, and nothing else is."""

import pytest
import torch
from support import digits
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import dead_neurons


def network():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 10))
    nn.init.constant_(net[0].bias, 5.0)
    nn.init.constant_(net[3].bias, 1e2)
    with torch.no_grad():
        net[0].bias[1], net[3].bias[2], net[3].bias[4] = -1e3, -1e3, -1e3
    return net


def test_neurons_that_are_zero_on_all_data_are_dead():
    net, batches = network().train(), [(digits()[0][k : k + 50].view(-1, 1, 8, 8), None) for k in (0, 50)]
    found = dead_neurons(net, batches)
    assert found.dead == {"0": [1], "3": [2, 4]}
    assert found.sizes == {"0": 4, "3": 6}
    assert found.count == 3
    assert "reach the outputs" in found.skipped["5"]
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_taking_the_dead_out_changes_nothing():
    net, pictures = network().eval(), digits()[0][:50].view(-1, 1, 8, 8)
    before = net(pictures)
    found = dead_neurons(net, [pictures])
    groups = lc.surgery.find_groups(net, lc.surgery.TracingInput("", (pictures,), {}))
    for name, numbers in found.dead.items():
        alive = [number for number in range(found.sizes[name]) if number not in numbers]
        groups.named(name).keep(torch.tensor(alive)).apply(net)
    torch.testing.assert_close(net(pictures), before)


def test_where_nothing_can_be_looked_at_it_says_so():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.memory, self.leave = nn.Linear(8, 6), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.leave(self.memory(torch.relu(self.enter(x)))[0])

    found = dead_neurons(Reads(), [torch.randn(3, 5, 8)])
    assert found.skipped["enter"] == "no Linear or convolution reads them"
    assert "enter" not in found.dead
    with pytest.raises(CompressionError, match="no data"):
        dead_neurons(Reads(), [])

"""The networks of the zoo: sizes, shapes and names that others build on."""

import subprocess
import sys

import pytest
import torch

from lightning_compress import zoo
from lightning_compress.zoo import LeNet5, LeNet300, SmallResNet


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (LeNet300(), 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
        (LeNet300(in_features=784), 266_610),
        (LeNet5(), 20 * 9 + 20 + 50 * 20 * 9 + 50 + 200 * 500 + 500 + 500 * 10 + 10),
        (SmallResNet(), 77_754),
    ],
)
def test_parameters(network, parameters):
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (LeNet300(in_features=3 * 5 * 5, num_classes=4), (3, 5, 5)),
        (LeNet5(input_shape=(3, 9, 12), num_classes=4), (3, 9, 12)),
        (SmallResNet(channels=(4, 6), in_channels=3, num_classes=4), (3, 10, 7)),
    ],
)
def test_any_input_shape_and_number_of_classes(network, shape):
    assert network(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("network", [LeNet300(), LeNet5(), SmallResNet()])
def test_every_parameter_learns(network):
    network(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_layers_bear_the_names_of_the_papers():
    assert [name for name, _ in LeNet300().named_children() if name.startswith("fc")] == ["fc1", "fc2", "fc3"]
    assert {"conv1", "conv2", "fc1", "fc2"} <= dict(LeNet5().named_children()).keys()


def test_all_public_names_exist():
    assert all(hasattr(zoo, name) for name in zoo.__all__)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = zoo.Nonsense


def test_networks_are_imported_without_lightning():
    code = "import sys, lightning_compress.zoo.lenet; sys.exit(any(m in sys.modules for m in ('lightning', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

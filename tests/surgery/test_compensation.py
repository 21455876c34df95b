"""What is left of a layer stands in for what is gone."""

import copy

import pytest
import torch
from surgery.architectures import build
from torch import nn
from torch.nn import functional

from lightning_compress.plan import named_tensors
from lightning_compress.surgery import TracingInput, find_groups, merge, verify_edit
from lightning_compress.surgery.compensation import compensation, readers, write_


def half(groups):
    return merge([group.keep(torch.arange(0, group.size, 2)) for group in groups])


def both_ways(network, edit, value):
    """The outputs of the uncut network, of the cut one, and of the cut one with compensation."""
    network.eval()
    plain, repaired = copy.deepcopy(network), copy.deepcopy(network)
    write_(repaired, compensation(network, edit, [lambda net: net(value)]))
    edit.apply(plain)
    edit.apply(repaired)
    with torch.no_grad():
        return network(value), plain(value), repaired.eval()(value)


@pytest.mark.parametrize("shape", ["linear", "convolution", "transposed"])
def test_neurons_that_are_there_twice_are_made_up_for_exactly(shape):
    torch.manual_seed(0)
    if shape == "linear":
        network, value = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(200, 5)
    elif shape == "convolution":
        layers = [nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 3)]
        network, value = nn.Sequential(*layers), torch.randn(40, 2, 6, 6)
    else:
        layers = [nn.Conv2d(2, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2)]
        network, value = nn.Sequential(*layers), torch.randn(40, 2, 6, 6)
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter[1::2] = parameter[::2]
    (group,) = find_groups(network, TracingInput("", (value[:4],), {}))
    whole, plain, repaired = both_ways(network, half([group]), value)
    assert (whole - plain).abs().max() > 0.05
    assert (whole - repaired).abs().max() < 0.02 * whole.abs().max()


def test_a_neuron_that_never_changes_goes_into_the_next_bias():
    torch.manual_seed(0)
    network, value = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(50, 5)
    with torch.no_grad():
        network[0].weight[3] = 0
        network[0].bias[3] = 2
    edit = find_groups(network, TracingInput("", (value,), {}))[0].keep(torch.arange(3))
    whole, plain, repaired = both_ways(network, edit, value)
    assert (whole - plain).abs().max() > 0.1
    torch.testing.assert_close(repaired, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet", "bottleneck_resnet", "densenet", "mobilenet_v2", "vgg", "lenet_5"])
def test_outputs_come_nearer_to_those_of_the_uncut_network(name):
    network, _ = build(name)
    torch.manual_seed(1)
    value = torch.randn(64, 1, 8, 8)
    network.train()
    for _ in range(20):  # BatchNorm's statistics are those of the data
        with torch.no_grad():
            network(value)
    groups = find_groups(network, TracingInput("", (value[:4],), {}))
    whole, plain, repaired = both_ways(network, half(groups), value)
    assert functional.mse_loss(repaired, whole) < 0.5 * functional.mse_loss(plain, whole)


def test_the_network_itself_is_not_touched_and_the_repaired_one_is_still_proved():
    network, value = build("resnet")
    tracing = TracingInput("", (value,), {})
    edit = half(find_groups(network, tracing))
    before = {name: tensor.clone() for name, tensor in named_tensors(network).items()}
    state = torch.get_rng_state()
    values = compensation(network, edit, [lambda net: net(torch.randn(8, 1, 8, 8))])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(network).items())
    assert {f"{name}.weight" for name in readers(network, edit)} <= set(values)
    write_(network, values)
    verify_edit(network, edit, tracing)


APPROXIMATE = {
    "convnext": ("0", ("1.norm", "2.norm")),
    "gpt": (
        "blocks.0.attention.leave",
        ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"),
    ),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_widths_under_layer_norm_go_on_request_and_the_norms_are_named(name):
    network, value = build(name)
    tracing = TracingInput("", (value,), {})
    producer, norms = APPROXIMATE[name]
    group = find_groups(network, tracing, approximate=True).named(producer)
    assert group.norms == norms
    edit = half([group])
    verify_edit(network, edit, tracing, norms=norms)  # nothing but the norms is approximate
    with pytest.raises(Exception, match="Normalisation over the cut channels"):
        verify_edit(network, edit, tracing)
    edit.apply(network)
    assert network.get_submodule(norms[0]).normalized_shape == (len(torch.arange(0, group.size, 2)),)
    network(value)

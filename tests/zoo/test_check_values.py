"""The networks are those of the papers: costs, and names and shapes of all tensors, to the unit."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo.references import CHECK_VALUES, WITH_KEYS, shapes, side

import lightning_compress as lc
from lightning_compress.zoo import NETWORKS, build
from lightning_compress.zoo.catalog import STUDENTS, TEACHERS

KINDS = [*STUDENTS, "resnet18", "resnet50", "vgg11", "vgg11_bn"]


def without_values(name, **options):
    with torch.device("meta"):
        return build(name, **options).eval()


@pytest.mark.parametrize(("name", "options", "parameters", "macs"), CHECK_VALUES)
def test_parameters_and_macs_are_those_of_the_reference(name, options, parameters, macs):
    network, pixels = without_values(name, **options), side(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, 3, pixels, pixels, device="meta"))
    assert counter.get_total_flops() == 2 * macs


def test_measure_says_the_same():
    cost = lc.measure(build("mobilenet_v2", width=0.5), torch.zeros(1, 3, 224, 224))
    assert (cost.parameters, cost.macs) == (1_968_680, 97_131_840)


@pytest.mark.parametrize("file", WITH_KEYS)
def test_every_tensor_has_the_name_and_shape_that_pretrained_weights_have(file):
    name, options = WITH_KEYS[file]
    network = without_values(name, **options)
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == shapes(file)


def test_every_network_but_those_that_no_library_has_is_compared():
    compared = {name for name, _ in WITH_KEYS.values()}
    assert compared == (STUDENTS | TEACHERS).keys() - {"shufflenet_v1"}
    assert {name for name, *_ in CHECK_VALUES} == (STUDENTS | TEACHERS).keys()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pixels", [8, 32])
def test_small_pictures_change_no_shape_but_that_of_vggs_first_linear_layer(name, pixels):
    large = without_values(name, width=0.5).state_dict()
    small = without_values(name, width=0.5, image_size=pixels).state_dict()
    assert small.keys() == large.keys()
    changed = {key for key in large if small[key].shape != large[key].shape}
    assert changed == ({"classifier.0.weight"} if name.startswith("vgg") else set())


def last_side(network, pixels):
    """Height of what the last pool of all averages over."""
    pools = [layer for layer in network.modules() if isinstance(layer, nn.AdaptiveAvgPool2d)]
    sides = []
    pools[-1].register_forward_pre_hook(lambda _pool, inputs: sides.append(inputs[0].shape[-1]))
    network(torch.empty(1, 3, pixels, pixels, device="meta"))
    return sides[0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("pixels", "least", "most"), [(8, 3, 4), (32, 3, 4), (64, 3, 4)])
def test_about_four_by_four_positions_of_small_pictures_reach_the_end(name, pixels, least, most):
    assert least <= last_side(without_values(name, image_size=pixels, width=0.25), pixels) <= most


def test_there_is_one_list_of_all_networks():
    assert {"lenet_5", "small_resnet", "mobilenet_v2", "vgg16_bn"} <= NETWORKS.keys()
    assert len(NETWORKS) == 3 + 9 + 13

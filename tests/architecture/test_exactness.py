"""Full ranks reproduce the layer, whatever its stride, dilation, padding, groups and bias; and multiply out again."""

import random
from itertools import product

import pytest
import torch
from torch import nn

from lightning_compress.architecture.conversion import replacement
from lightning_compress.architecture.factorization import PACKAGE, Choice
from lightning_compress.architecture.geometry import Geometry, macs_in, parameters_in
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.architecture.merging import dense_layer
from lightning_compress.measure import measure
from lightning_compress.registry import names, resolve
from lightning_compress.surgery.compensation import write_
from lightning_compress.surgery.paired_moments import PairedMoments

SETTINGS = [
    {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "bias": bias, "padding_mode": mode}
    for stride, dilation, padding, groups, bias in product((1, 2), (1, 2), (0, 1, 2), (1, 2), (True, False))
    for mode in (("zeros", "circular", "reflect", "replicate") if padding else ("zeros",))
]
LAYERS = [nn.Conv2d(4, 6, (3, 2), **settings) for settings in random.Random(0).sample(SETTINGS, 20)]
LAYERS += [nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.Conv2d(4, 6, 3, padding="valid")]
LAYERS += [
    nn.Conv2d(4, 6, 1, stride=2),
    nn.Conv2d(4, 6, 1, groups=2, padding=1),
    nn.Linear(4, 6),
    nn.Linear(4, 3, bias=False),
]
LAYERS += [nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Conv3d(4, 6, 2, padding=1, groups=2, bias=False)]


def input_of(layer):
    spatial = (9, 8, 5)[: len(Geometry.of(layer).kernel)]
    return torch.randn(3, 4, *spatial) if spatial else torch.randn(3, 5, 4)


def replaced(layer, choice, *, data):
    """The layer's replacement, filled, and its edit."""
    root, value = nn.Sequential(layer), input_of(layer)
    moments = None
    if data:
        moments = PairedMoments.empty(layer)
        moments.add(layer, value, layer(value))
    edit, values, loss = replacement("0", layer, choice, moments)
    edit.apply(root)
    write_(root, values)
    return root[0], edit, loss


def relative(one, two):
    return float((one - two).abs().max() / one.abs().max())


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("name", names(PACKAGE))
@torch.no_grad()
def test_full_ranks_reproduce_the_layer_and_merge_back(name, data):
    torch.manual_seed(0)
    method = resolve(name, PACKAGE)
    tried = 0
    for layer in LAYERS:
        geometry = Geometry.of(layer)
        if method.refuses(geometry):
            continue
        choice = Choice(name, method.full(geometry))
        factored, edit, _ = replaced(layer, choice, data=data)
        value = input_of(layer)
        expected = layer(value)
        assert relative(expected, factored(value)) <= 1e-5, (layer, choice)
        assert parameters_in(edit.spec) == sum(p.numel() for p in factored.parameters())
        back, values = dense_layer("0", factored)
        root = nn.Sequential(factored)
        back.apply(root)
        write_(root, values)
        assert type(root[0]) is type(layer)
        assert Geometry.of(root[0]) == Geometry.of(layer) or Geometry.of(layer).padding in ("same", "valid")
        assert relative(expected, root(value)) <= 1e-5, (layer, choice)
        tried += 1
    assert tried > 4


@pytest.mark.parametrize("name", names(PACKAGE))
def test_lower_ranks_lose_what_is_said_and_data_help(name):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3)
    mixing = torch.randn(8, 8) * torch.logspace(0, -1.5, 8)
    value = torch.einsum("ij,njhw->nihw", mixing, torch.randn(20, 8, 7, 7))
    moments = PairedMoments.empty(layer)
    with torch.no_grad():
        moments.add(layer, value, layer(value))
        expected = layer(value)
        ranks = {"channel": (4,), "spatial": (6,), "tucker": (4, 6)}.get(name, (2,))
        lost = {}
        for data in (False, True):
            root = nn.Sequential(layer)
            edit, values, loss = replacement("0", layer, Choice(name, ranks), moments if data else None)
            edit.apply(root)
            write_(root, values)
            made = root(value)
            centred = expected - expected.mean((0, 2, 3), keepdim=True)
            lost[data] = float((made - expected).square().sum() / centred.square().sum())
            if data:
                assert lost[data] == pytest.approx(loss, rel=0.1)
            else:
                weight = dense_layer("0", root[0])[1]["0.weight"]
                assert loss == pytest.approx(
                    float((weight - layer.weight).square().sum() / layer.weight.square().sum()), rel=1e-4
                )
    assert lost[True] < lost[False]


def test_a_truncated_svd_is_optimal_for_separable_and_spatial_layers():
    """Squared errors are the tails of the singular values, of every slice or of the unfolding."""
    torch.manual_seed(0)
    weight = torch.randn(10, 6, 3, 3)
    problem = Problem.of_weight(weight)
    for name, matrices in {
        "depthwise_first": weight.double().flatten(2).transpose(0, 1),
        "pointwise_first": weight.double().flatten(2),
        "channel": weight.double().flatten(1)[None],
        "spatial": weight.double().permute(1, 2, 0, 3).reshape(1, 18, 30),
    }.items():
        method = resolve(name, PACKAGE)
        for rank in (1, 2, 3):
            tail = torch.linalg.svdvals(matrices)[:, rank:].square().sum() / problem.energy
            product = method.product(method.fit(problem, (rank,), 5), (rank,)).flatten(1)
            assert problem.loss(product) == pytest.approx(float(tail), abs=1e-9)


def test_parameters_and_macs_are_those_of_the_formula():
    layer = nn.Conv2d(64, 128, 3, padding=1, bias=False)
    geometry = Geometry.of(layer)
    spec = resolve("depthwise_first", PACKAGE).spec(geometry, (1,), bias=False)
    assert parameters_in(spec) == 9 * 64 + 64 * 128 == 8768
    assert parameters_in(spec) / layer.weight.numel() == pytest.approx(1 / 128 + 1 / 9)
    assert macs_in(spec, [(1, 64, 7, 7)]) == 8768 * 49
    dense = measure(layer, torch.zeros(2, 64, 7, 7)).macs
    assert macs_in(geometry.dense(bias=False), [(2, 64, 7, 7)]) == dense


def test_branches_compute_what_one_grouped_convolution_does():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1)
    value = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        one, two = (
            replaced(layer, Choice(name, (2,)), data=False)[0] for name in ("depthwise_first", "depthwise_branches")
        )
        assert relative(one(value), two(value)) <= 1e-5
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in two.parameters())

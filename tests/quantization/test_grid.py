"""Rounding: ATen and plain arithmetic give the same, compiled or not; observers find ranges; codes survive a fold."""

import copy

import pytest
import torch
from support import same
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.activations import build_activation_quantizer
from lightning_compress.quantization.grid import (
    Grid,
    codes_of,
    fake_quantize,
    learned_fake_quantize,
    plain_fake_quantize,
    plain_learned_fake_quantize,
)
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.observation import Observation, observed_range, resolve_observer
from lightning_compress.quantization.settings import SCALES, Settings
from lightning_compress.quantization.vectorized import vectorized_fake_quantize
from lightning_compress.registry import names
from lightning_compress.surgery import fold_batchnorm_

OBSERVERS = names("lightning_compress.quantization.observers")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_plain_arithmetic_equals_aten_in_value_and_gradient(bits, axis, symmetric):
    torch.manual_seed(bits)
    grid, count = Grid(bits, symmetric=symmetric), 1 if axis is None else (5, 7)[axis]
    scale = torch.rand(count) * 0.1 + 0.01
    zero_point = torch.zeros(count, dtype=torch.int32) if symmetric else torch.full((count,), 1, dtype=torch.int32)
    values = [torch.linspace(-1, 1, 35).view(5, 7).clone().requires_grad_() for _ in range(2)]
    results = [f(x, scale, zero_point, grid, axis) for f, x in zip((fake_quantize, plain_fake_quantize), values)]  # noqa: B905
    assert torch.equal(*results)
    for result in results:
        (result * torch.arange(35.0).view(5, 7)).sum().backward()
    assert torch.equal(values[0].grad, values[1].grad)
    codes = codes_of(values[0], scale, zero_point, grid, axis)
    assert grid.low <= int(codes.min())
    assert int(codes.max()) <= grid.high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("grid", [Grid(2), Grid(8), Grid(3, symmetric=False), Grid(8, symmetric=False)], ids=str)
def test_vectorized_rounding_equals_aten(grid, axis, dtype):
    torch.manual_seed(0)
    count = 1 if axis is None else (40, 50)[axis]
    scale, zero_point = torch.rand(count) * 0.1 + 0.01, torch.zeros(count, dtype=torch.int32)
    if not grid.symmetric:
        zero_point.random_(0, grid.high)
    found = []
    for function in (
        lambda x: vectorized_fake_quantize(x, scale, zero_point, grid.low, grid.high, axis),
        lambda x: (
            torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.low, grid.high)
            if axis is None
            else torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, grid.low, grid.high)
        ),
    ):
        torch.manual_seed(1)
        value = torch.randn(40, 50).to(dtype).requires_grad_()
        result = function(value)
        result.backward(torch.randn(40, 50).to(dtype))
        found.append((result.detach(), value.grad))
    assert same(*found)
    zeros = found[0][0] == 0
    assert not torch.signbit(found[0][0][zeros]).any()


def test_what_is_rounded_twice_in_a_step_or_written_into_has_its_gradient():
    quantizer = build_activation_quantizer("observed", Grid(8, symmetric=False), resolve_observer("moving_average"))
    quantizer.enabled = True
    value = torch.linspace(-1, 1, 21, requires_grad=True)
    (quantizer(value, True).mul_(2.0).sum() + quantizer(value / 2, True).sum()).backward()
    assert torch.equal(value.grad[1:-1], torch.full((19,), 2.5))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_learned_scales_have_atens_gradients(axis, symmetric):
    torch.manual_seed(0)
    grid, count = Grid(3, symmetric=symmetric), 1 if axis is None else 5
    found = []
    for function in (learned_fake_quantize, plain_learned_fake_quantize):
        value = (torch.arange(35.0).view(5, 7) / 35 - 0.4).requires_grad_()
        scale = torch.full((count,), 0.113).requires_grad_()
        zero_point = torch.full((count,), 0.0 if symmetric else 2.0).requires_grad_(not symmetric)
        (function(value, scale, zero_point, grid, axis, 0.3) * torch.arange(35.0).view(5, 7)).sum().backward()
        found.append((value.grad, scale.grad, zero_point.grad))
    for one, two in zip(*found, strict=True):
        assert (one is None and two is None) or torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_scale_is_that_of_lsq():
    """Inside: the rounding error; outside: the end of the grid."""
    scale = torch.ones(1, requires_grad=True)
    value = torch.tensor([0.3, 1.6, 9.0, -9.0])
    result = learned_fake_quantize(value, scale, torch.zeros(1), Grid(3), None, 0.5)
    result.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    expected = 0.5 * (-0.3 + 10 * 0.4 + 100 * 3 - 1000 * 3)
    assert scale.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_finds_a_sensible_range(observer):
    torch.manual_seed(0)
    rows = torch.randn(3, 4000) * torch.tensor([[1.0], [10.0], [0.1]])
    low, high = observed_range(resolve_observer(observer), rows, Grid(8, symmetric=False))
    assert low.shape == high.shape == (3,)
    assert bool((low >= rows.amin(1)).all())
    assert bool((high <= rows.amax(1)).all())
    assert bool((high > rows.std(1)).all())
    assert bool((-low > rows.std(1)).all())


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_has_a_smaller_error_than_minmax_where_there_are_outliers(bits):
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(1, 4000), torch.tensor([[20.0]])], 1)
    grid, errors = Grid(bits), {}
    for observer in ("minmax", "mse", "percentile", "entropy"):
        scale, zero_point = grid.parameters(*observed_range(resolve_observer(observer), rows, grid))
        errors[observer] = (fake_quantize(rows, scale, zero_point, grid) - rows).square().mean().item()
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < 0.5 * errors["minmax"]


def test_histograms_widen_without_losing_a_count():
    seen = Observation(histogram=True)
    for size in (0.1, 1.0, 30.0, 0.5):
        seen.add(torch.randn(1, 100) * size)
    assert int(seen.counts.sum()) == 400
    again = Observation(histogram=True)
    again.load_state_dict(seen.state_dict())
    assert torch.equal(again.counts, seen.counts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_have_no_range(value):
    with pytest.raises(CompressionError, match="not finite"):
        observed_range(resolve_observer("minmax"), torch.tensor([[1.0, value]]), Grid(8))


@pytest.mark.parametrize("scale", SCALES)
def test_activation_quantizers_begin_where_the_data_lie(scale):
    torch.manual_seed(0)
    for value in (torch.rand(64, 32), torch.randn(64, 32)):
        quantizer = build_activation_quantizer(scale, Grid(8, symmetric=False), resolve_observer("moving_average"))
        quantizer.enabled = True
        rounded = quantizer(value, True)
        assert (rounded - value).square().mean() < 1e-3 * value.square().mean()


# -- BatchNorm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_folding_batch_norm_leaves_every_code_as_it_was(bits):
    torch.manual_seed(bits)
    layers = []
    for inputs, outputs in ((8, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.BatchNorm1d(64))
    for layer in net:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            layer.running_var.uniform_(0.1, 3)
            assert bool((layer.weight < 0).any())
    folded = copy.deepcopy(net).eval()
    assert len(fold_batchnorm_(folded)) == 4
    settings = Settings(bits, None, edge_bits=None)
    codes = []
    for one in (net, folded):
        quantization = FakeQuantization(one, settings)
        codes.append({name: q.codes(quantization.raw(name)).int() for name, q in quantization.weights.items()})
    for number, layer in enumerate(net):
        if f"{number}.weight" in codes[0]:
            sign = net[number + 1].weight.sign().int().view(-1, *[1] * (layer.weight.dim() - 1))
            assert int((codes[0][f"{number}.weight"] * sign != codes[1][f"{number}.weight"]).sum()) == 0


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["observed", "lsq"])
def test_compiled_parts_compute_the_same_without_a_break_in_the_graph(scale):
    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        return nn.Sequential(net)

    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        root = build()
        quantization = FakeQuantization(root, Settings(4, 4, scale=scale))
        quantization.attach()
        quantization.enable()
        torch.manual_seed(1)
        batches = torch.randn(4, 16, 6)
        root(batches[0])  # ranges and scales begin in eager mode
        if compiled:
            quantization.detach()
            root[0] = torch.compile(root[0], backend="aot_eager", fullgraph=True)
            state = quantization.state_dict()
            quantization = FakeQuantization(root, Settings(4, 4, scale=scale))
            for side in ("weights", "activations", "inputs"):
                state[side] = {f"0._orig_mod.{key[2:]}": value for key, value in state[side].items()}
            state["inputs"] = {key: f"0._orig_mod.{place[2:]}" for key, place in state["inputs"].items()}
            quantization.load_state_dict(state)
            quantization.attach()
        outputs = []
        for batch in batches[1:]:
            root.zero_grad()
            outputs.append(root(batch))
            outputs[-1].square().sum().backward()
        root.eval()
        outputs.append(root(batches[0]))
        results.append((outputs, [p.grad for p in root.parameters()], list(quantization.activations.values())))
        quantization.detach()
    for one, two in zip(results[0][0], results[1][0], strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(one, two, atol=1e-4)
    for one, two in zip(results[0][2], results[1][2], strict=True):
        assert torch.allclose(one.scale, two.scale)
        assert torch.equal(one.zero_point, two.zero_point)

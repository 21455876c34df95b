"""What is replaced, what is refused by name, and ranks that no budget gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_compress.architecture import Choice, low_rank_, separable_
from lightning_compress.architecture.layers import find_layers
from lightning_compress.errors import CompressionError
from lightning_compress.surgery.tracing import TracingInput


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        values = self.embed(tokens)
        return self.head(self.attention(values, values, values)[0].mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.middle(self.embedding(tokens))))


def separable_on(network: nn.Module, data: object) -> object:
    return separable_(network, data=data)


def low_rank_layer(rank: int, noise: float) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(60, 40)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(40, rank) @ torch.randn(rank, 60) + noise * torch.randn(40, 60))
    return layer


@pytest.mark.parametrize(
    ("network", "inputs", "left", "why"),
    [
        (Attention(), torch.randn(2, 3, 8), "attention.out_proj", "without calling it"),
        (Tied(), torch.arange(6)[None], "head", "tied"),
        (nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)), torch.randn(2, 8), "0", "computed from"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 8, 3)), torch.randn(1, 4, 8, 8), "0", "no plain"),
    ],
)
def test_what_cannot_be_replaced_is_left_alone_and_says_why(network, inputs, left, why):
    found = find_layers(network, call=TracingInput("", (inputs,), {}))
    assert found.calls
    assert left not in found.calls
    assert why in found.skipped[left]
    before = network(inputs)
    with pytest.raises(CompressionError, match=rf"'{left}' cannot be replaced.*Leave it out"):
        low_rank_(network, 0.5, data=[inputs], targets=[left])
    assert torch.equal(network(inputs), before)


def test_a_layer_whose_weights_are_not_finite_is_left_alone():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[0].weight.data[0, 0] = float("nan")
    assert "not finite" in find_layers(network).skipped["0"]


def test_a_lazy_layer_is_refused():
    with pytest.raises(CompressionError, match="'0' is lazy"):
        low_rank_(nn.Sequential(nn.LazyLinear(8)), 0.5)


def test_a_transformer_evaluates_after_its_layers_were_replaced_and_is_fast_again_when_they_are_back():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    network, tokens = nn.TransformerEncoder(layer, 2).eval(), torch.randn(32, 5, 16)
    padding = torch.arange(5)[None].expand(32, 5) > 3
    conversion = low_rank_(network, ranks={"layers.0.linear1": 9, "layers.1.linear2": 9}, data=[tokens])
    with torch.no_grad():
        found = network(tokens), network(tokens, src_key_padding_mask=padding)
    expected = network(tokens), network(tokens, src_key_padding_mask=padding)  # gradients: never the fused operation
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found, expected, strict=True))
    inverse = conversion.edits[0].apply(nn.ModuleDict({"layers": nn.ModuleList([layer])}))
    assert layer.activation_relu_or_gelu == 0
    inverse.apply(nn.ModuleDict({"layers": nn.ModuleList([layer])}))
    assert layer.activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.randn(4, 16), "one batch"),
        (5, "batches"),
        ("abc", "batches"),
        ([torch.randn(0, 16)], "Batch 0 of data= has no samples"),
        ([()], "no samples"),
        ([torch.randn(4, 16), torch.full((4, 16), torch.nan)], "Batch 1 of data= has values that are not finite"),
        ([torch.randn(4, 15)], "does not run"),
        ([{"inputs": torch.randn(4, 16)}], "does not run"),
    ],
)
@pytest.mark.parametrize("convert", [lambda net, data: low_rank_(net, 0.5, data=data), separable_on])
def test_calibration_data_that_cannot_be_used_are_refused(convert, data, message):
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with pytest.raises(CompressionError, match=message):
        convert(network, data)
    assert [type(part) for part in network] == [nn.Linear, nn.ReLU, nn.Linear]


def test_values_that_a_layer_makes_infinite_are_named():
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    network[0].weight.data.mul_(1e20)
    with pytest.raises(CompressionError, match="reads or computes values that are not finite"):
        low_rank_(network, 0.5, data=[1e30 * torch.randn(64, 16)])


def test_the_error_of_single_samples_is_a_share_too():
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    error = low_rank_(network, 0.6, data=[torch.randn(1, 16) for _ in range(30)]).error
    assert 0 < error < 2


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"22": 3}, "Did you mean '2'"),
        ({"0": (3, 3)}, "with 2 ranks"),
        ({"0": Choice("spatial", (3,))}, "spatial does not fit it"),
        ({"0": Choice("channel", (3, 3))}, "has 2 ranks, it takes 1"),
        (lambda values, shape: float("nan"), "nan"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks, message):
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with pytest.raises(CompressionError, match=message):
        low_rank_(network, ranks=ranks)


def test_multipliers_of_unknown_layers_are_refused():
    with pytest.raises(CompressionError, match="Did you mean '0'"):
        separable_(nn.Sequential(nn.Conv2d(8, 8, 3)), {"00": 1})


def test_factors_are_frozen_as_the_weight_was_and_the_bias_as_the_bias():
    network = nn.Sequential(nn.Linear(16, 16))
    network[0].weight.requires_grad_(False)
    low_rank_(network, ranks={"0": 3})
    assert {name: one.requires_grad for name, one in network[0].named_parameters()} == {
        "0.weight": False,
        "1.weight": False,
        "1.bias": True,
    }


def test_layers_around_an_attention_are_replaced_and_the_attention_is_not():
    torch.manual_seed(0)
    network, inputs = Attention(), torch.randn(32, 5, 8)
    projection = network.attention.out_proj
    conversion = low_rank_(network, ranks={"embed": 4, "head": 3}, data=[inputs])
    assert {layer.name for layer in conversion.layers} == {"embed", "head"}
    assert network.attention.out_proj is projection
    assert network(inputs).shape == (32, 4)


def test_a_factor_is_not_factored_again():
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    low_rank_(network, ranks={"0": 8})
    found = find_layers(network)
    assert list(found.calls) == ["2"]
    assert set(found.skipped.values()) == {"it is a factor already"}


@pytest.mark.parametrize(("ranks", "kept"), [("vbmf", 5), (0.999, 5)])
def test_ranks_are_found_in_the_weights(ranks, kept):
    network = nn.Sequential(low_rank_layer(5, noise=0.02))
    conversion = low_rank_(network, ranks=ranks, round_to=1)
    assert conversion.layers[0].choice.ranks == (kept,)
    assert conversion.layers[0].loss < 1e-2


def test_a_layer_that_would_not_get_smaller_stays():
    network = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(CompressionError, match="smaller"):
        low_rank_(network, ranks={"0": 16})
    network = nn.Sequential(nn.Conv2d(8, 8, 3))
    assert "no smaller" in separable_(network, {"0": 8}).skipped["0"]
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_latency_budget_replaces_layers_and_never_makes_the_network_larger(runtime):
    """What time it takes is for the benchmark; here, that layers are timed, chosen and replaced."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    before, inputs = sum(p.numel() for p in network.parameters()), torch.randn(64, 512)
    conversion = low_rank_(network, speedup=1.3, data=[inputs], runtime=runtime)
    assert conversion.layers
    assert sum(p.numel() for p in network.parameters()) < before
    assert network(inputs).shape == (64, 10)

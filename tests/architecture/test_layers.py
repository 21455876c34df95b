"""What is replaced, what is refused by name, and ranks that no budget gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_compress.architecture import low_rank_, separable_
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


def low_rank_layer(rank: int, noise: float) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(60, 40)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(40, rank) @ torch.randn(rank, 60) + noise * torch.randn(40, 60))
    return layer


@pytest.mark.parametrize(
    ("network", "inputs", "left", "why"),
    [
        (Attention(), torch.randn(2, 3, 8), "attention.out_proj", "does not run it"),
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

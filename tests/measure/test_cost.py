"""Costs against formulas worked out by hand, and a module that is left exactly as it was."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_map_only

from lightning_compress.errors import CompressionError
from lightning_compress.measure import measure


class Calls(nn.Module):
    """A module from a function, so that a test can say what is computed."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def attention_macs(batch, queries, keys, width):
    projections = batch * (2 * queries + 2 * keys) * width * width
    return projections + 2 * batch * queries * keys * width


MACS = {
    "linear": (nn.Linear(5, 3), torch.zeros(2, 5), 2 * 5 * 3),
    "linear on sequences": (nn.Linear(5, 3, bias=False), torch.zeros(2, 7, 5), 2 * 7 * 5 * 3),
    "bilinear": (nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4)), 2 * 5 * 4 * (3 + 1)),
    "conv1d": (nn.Conv1d(3, 8, 5, padding=2), torch.zeros(2, 3, 20), 2 * 20 * 8 * 3 * 5),
    "conv2d": (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(2, 3, 9, 9), 2 * 25 * 8 * 3 * 9),
    "conv2d without batch": (nn.Conv2d(3, 8, 3), torch.zeros(3, 9, 9), 49 * 8 * 3 * 9),
    "conv2d dilated": (nn.Conv2d(3, 8, 3, dilation=2), torch.zeros(1, 3, 9, 9), 25 * 8 * 3 * 9),
    "conv3d": (nn.Conv3d(2, 4, 3), torch.zeros(1, 2, 5, 5, 5), 27 * 4 * 2 * 27),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), torch.zeros(1, 4, 6, 6), 16 * 8 * 2 * 9),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), torch.zeros(1, 6, 6, 6), 16 * 6 * 9),
    "transposed 1d": (nn.ConvTranspose1d(3, 5, 4, stride=2), torch.zeros(2, 3, 7), 2 * 7 * 3 * 5 * 4),
    "transposed 2d": (nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), torch.zeros(1, 3, 7, 7), 49 * 3 * 5 * 16),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), torch.zeros(1, 2, 3, 3, 3), 27 * 2 * 3 * 8),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.zeros(1, 4, 5, 5), 25 * 4 * 3 * 9),
    "attention": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        (torch.zeros(3, 5, 8), torch.zeros(3, 7, 8), torch.zeros(3, 7, 8)),
        attention_macs(3, 5, 7, 8),
    ),
    "attention without weights": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        {**dict.fromkeys(("query", "key", "value"), torch.zeros(3, 5, 8)), "need_weights": False},
        attention_macs(3, 5, 5, 8),
    ),
    "transformer encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        torch.zeros(3, 5, 8),
        2 * (attention_macs(3, 5, 5, 8) + 3 * 5 * 2 * 8 * 16),
    ),
    "scaled dot product": (
        Calls(lambda _, q, k, v: scaled_dot_product_attention(q, k, v)),
        (torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 7, 8)),
        2 * 4 * 5 * 7 * (8 + 8),
    ),
    "lstm": (nn.LSTM(3, 6), torch.zeros(7, 2, 3), 7 * 2 * 4 * 6 * (3 + 6)),
    "lstm deep and bidirectional": (
        nn.LSTM(3, 6, num_layers=2, bidirectional=True, batch_first=True),
        torch.zeros(2, 7, 3),
        2 * 7 * 2 * 4 * 6 * ((3 + 6) + (12 + 6)),
    ),
    "lstm with projection": (nn.LSTM(3, 6, proj_size=4), torch.zeros(7, 2, 3), 7 * 2 * (4 * 6 * (3 + 4) + 6 * 4)),
    "gru": (nn.GRU(3, 6), torch.zeros(7, 2, 3), 7 * 2 * 3 * 6 * (3 + 6)),
    "rnn": (nn.RNN(3, 6), torch.zeros(7, 2, 3), 7 * 2 * 6 * (3 + 6)),
    "lstm cell": (nn.LSTMCell(3, 6), torch.zeros(2, 3), 2 * 4 * 6 * (3 + 6)),
    "gru cell": (nn.GRUCell(3, 6), torch.zeros(2, 3), 2 * 3 * 6 * (3 + 6)),
    "matmul": (Calls(lambda _, x, y: x @ y), (torch.zeros(4, 2, 3), torch.zeros(3, 5)), 4 * 2 * 3 * 5),
    "bmm": (Calls(lambda _, x, y: torch.bmm(x, y)), (torch.zeros(4, 2, 3), torch.zeros(4, 3, 5)), 4 * 2 * 3 * 5),
    "matrix times vector": (Calls(lambda _, x, y: x @ y), (torch.zeros(2, 3), torch.zeros(3)), 2 * 3),
    "inner product": (Calls(lambda _, x: x @ x), torch.zeros(9), 9),
    "addmv": (Calls(lambda _, x, y: torch.addmv(x[:, 0], x, y)), (torch.zeros(2, 3), torch.zeros(3)), 2 * 3),
    "addbmm": (
        Calls(lambda _, x, y: torch.addbmm(torch.zeros(2, 5, device=x.device), x, y)),
        (torch.zeros(4, 2, 3), torch.zeros(4, 3, 5)),
        4 * 2 * 3 * 5,
    ),
    "einsum": (
        Calls(lambda _, x, y: torch.einsum("bij,bkj->bik", x, y)),
        (torch.zeros(4, 2, 3), torch.zeros(4, 5, 3)),
        4 * 2 * 3 * 5,
    ),
    "nothing multiplied": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Flatten()), torch.zeros(2, 4), 0),
    "embedding": (nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.long), 0),
}


def asking_for_values(module):
    """The same module, with a forward that cannot run without values."""

    def forward(self, *args, **kwargs):
        assert all(bool((arg == arg).all()) for arg in [*args, *kwargs.values()] if isinstance(arg, torch.Tensor))
        return self.inner(*args, **kwargs)

    return Calls(forward, inner=module)


@pytest.mark.parametrize("wrap", [lambda module: module, asking_for_values], ids=["meta", "real"])
@pytest.mark.parametrize("case", MACS)
def test_macs_equal_the_formula(case, wrap):
    module, example, expected = MACS[case]
    assert measure(wrap(module), example).macs == expected


def test_macs_are_those_of_inference_whatever_the_mode():
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    example = torch.zeros(3, 5, 8)
    assert measure(network.train(), example) == measure(network.eval(), example)


def test_a_module_called_twice_counts_its_macs_twice_and_its_parameters_once():
    network = Calls(lambda self, x: self.layer(self.layer(x)), layer=nn.Linear(4, 4))
    cost = measure(network, torch.zeros(1, 4))
    assert (cost.parameters, cost.macs, cost.dense_bytes) == (20, 32, 80)


def test_tied_weights_count_once():
    network = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    network[1].weight = network[0].weight
    cost = measure(network, torch.zeros(1, 3, dtype=torch.long))
    assert (cost.parameters, cost.nonzero_parameters, cost.macs, cost.dense_bytes) == (40, cost.parameters, 120, 160)


def test_nonzero_counts_nan_and_not_negative_zero():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, -0.0, float("nan"), 1e-30]])
    assert measure(layer, torch.zeros(1, 4)).nonzero_parameters == 2


def test_dense_bytes_are_the_tensors_of_the_state_dict():
    network = nn.Sequential(nn.Linear(4, 3).half(), nn.BatchNorm1d(3))
    network.register_buffer("scratch", torch.zeros(100), persistent=False)
    example = torch.zeros(2, 4)
    cost = measure(Calls(lambda self, x: self.net[1](self.net[0](x.half()).float()), net=network), example)
    assert cost.dense_bytes == 15 * 2 + 4 * 3 * 4 + 8


def test_peak_memory_of_a_chain_is_all_weights_and_the_two_widest_neighbours():
    network = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 50), nn.Linear(50, 2))
    weights = sum(parameter.numel() for parameter in network.parameters())
    batch = 8
    assert measure(network, torch.zeros(batch, 4)).peak_memory_bytes == 4 * (weights + batch * (4 + 100 + 50))


def test_peak_memory_counts_a_view_once_and_a_kept_shortcut():
    network = Calls(lambda self, x: x + self.fc(x.view(2, 8)).view(2, 8), fc=nn.Linear(8, 8))
    assert measure(network, torch.zeros(2, 8)).peak_memory_bytes == 4 * (72 + 3 * 16)


@pytest.mark.parametrize("case", ["linear", "conv2d", "gru cell", "attention"])
def test_peak_memory_is_the_same_on_meta_and_on_real_tensors(case):
    module, example, _ = MACS[case]
    real = measure(asking_for_values(module), example).peak_memory_bytes
    # the check of the values itself needs next to nothing, and is over before the layer begins
    assert real == measure(module, example).peak_memory_bytes


def snapshot(module, example):
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {
        "state": state,
        "identities": [id(tensor) for tensor in (*module.parameters(), *module.buffers())],
        "versions": [tensor._version for tensor in (*module.parameters(), *module.buffers(), example)],
        "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in module.parameters()],
        "modes": [layer.training for layer in module.modules()],
        "attributes": [sorted(vars(layer)) for layer in module.modules()],
        "hooks": [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in module.modules()],
        "global hooks": (len(global_hooks._global_forward_hooks), len(global_hooks._global_forward_pre_hooks)),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "example": example.clone(),
        "backends": (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.is_grad_enabled(),
        ),
    }


def assert_same(before, after):
    for name in before:
        np.testing.assert_equal(_plain(after[name]), _plain(before[name]), err_msg=name)


def _plain(value):
    return tree_map_only(torch.Tensor, lambda tensor: tensor.numpy(), value)


def disturbing_network(reads_values, fails):
    def forward(self, x):
        self.last_input = x
        self.seen = getattr(self, "seen", 0) + 1
        self.counter.add_(1)
        self.history.append(x)
        x.add_(torch.rand_like(x) + random.random() + np.random.rand())  # in place, and all three random states
        if reads_values and bool(x.sum() > 1e9):
            return x
        if fails:
            raise RuntimeError("on purpose")
        return self.norm(self.dropout(self.fc(x)))

    network = Calls(forward, fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), dropout=nn.Dropout(0.5))
    network.register_buffer("counter", torch.zeros(1))
    network.history = []
    network.fc(torch.ones(2, 4)).sum().backward()
    network.dropout.eval()
    network.fc.weight.requires_grad_(False)
    return network


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("reads_values", [False, True], ids=["meta", "real"])
def test_measure_leaves_everything_as_it_was(reads_values, fails):
    network, example, heard = disturbing_network(reads_values, fails), torch.ones(3, 4), []
    network.fc.register_forward_hook(lambda *_: heard.append("forward"))
    network.fc.register_forward_pre_hook(lambda *_: heard.append("before"))
    before = snapshot(network, example)
    if fails:
        with pytest.raises(CompressionError, match="on purpose"):
            measure(network, example)
    else:
        assert measure(network, example).macs == 3 * 16
    assert_same(before, snapshot(network, example))
    assert heard == []
    assert network.history == []
    assert not hasattr(network, "last_input")


def test_a_real_batchnorm_in_training_keeps_its_statistics():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = snapshot(network, example := torch.rand(4, 1, 5, 5))
    measure(network, example)
    assert_same(before, snapshot(network, example))


@pytest.mark.parametrize(
    ("layer", "extra"),
    [
        (prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=6), 0),
        (parametrizations.weight_norm(nn.Linear(4, 3)), 0),
        (parametrizations.spectral_norm(nn.Linear(4, 3)), 4 * 3 + 3),  # the norm u W v itself is part of the forward
        (torch.compile(nn.Linear(4, 3)), 0),
        (nn.Sequential(torch.compile(nn.Linear(4, 3))), 0),
    ],
    ids=["pruned by torch", "weight norm", "spectral norm", "compiled", "compiled inside"],
)
def test_networks_whose_weights_or_calls_are_not_plain(layer, extra):
    assert measure(layer, torch.zeros(2, 4)).macs == 24 + extra


def test_plain_tensor_attributes_and_tensors_on_a_graph_are_no_obstacle():
    network = nn.Sequential(nn.Linear(4, 3))
    network.result = network(torch.ones(1, 4))
    assert measure(network, torch.zeros(2, 4)).macs == 24


def test_two_tensors_as_a_tuple_equal_the_same_as_keywords():
    network = Calls(lambda self, x, y: self.fc(x) + y, fc=nn.Linear(4, 3))
    x, y = torch.zeros(2, 4), torch.zeros(2, 3)
    assert measure(network, (x, y)) == measure(network, {"x": x, "y": y})


def test_a_packed_sequence_is_one_argument():
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(3, 2, 4), torch.tensor([3, 1]))
    assert measure(nn.GRU(4, 5), packed).macs == (3 + 1) * 3 * 5 * (4 + 5)


def test_a_failing_layer_is_named():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(CompressionError, match=r"'1\.1' fails on the example input: .*1x4 and 5x2"):
        measure(network, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LazyLinear(3), "'weight' has no shape yet; run a forward"),
        (nn.Linear(4, 3, device="meta"), "'weight' is on the meta device"),
    ],
)
def test_parameters_without_values_are_refused(layer, message):
    with pytest.raises(CompressionError, match=message):
        measure(layer, torch.zeros(1, 4))


def test_a_module_that_cannot_be_copied_is_refused():
    network = nn.Sequential(nn.Linear(4, 3))
    network.generator = (number for number in range(3))
    with pytest.raises(CompressionError, match=r"Sequential cannot be copied to be measured: .*generator"):
        measure(network, torch.zeros(1, 4))

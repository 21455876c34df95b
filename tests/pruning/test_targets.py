"""Which weights a pattern means."""

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import find_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4))
        self.encoder = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4, bias=False)})
        self.attention = nn.MultiheadAttention(4, 2)
        self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        self.memory = nn.LSTM(4, 3, bidirectional=True)
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 4))


WEIGHTS = [
    "stem.0.weight",
    "encoder.fc1.weight",
    "encoder.fc2.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
    "memory.weight_ih_l0",
    "memory.weight_hh_l0",
    "memory.weight_ih_l0_reverse",
    "memory.weight_hh_l0_reverse",
    "head.weight",
]


def test_by_default_weights_of_layers_that_multiply_and_nothing_else():
    assert list(find_weights(Net(), None)) == WEIGHTS


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["head"], ["head.weight"]),
        (["encoder"], ["encoder.fc1.weight", "encoder.fc2.weight"]),
        (["encoder.fc*"], ["encoder.fc1.weight", "encoder.fc2.weight"]),
        (["*fc?"], ["encoder.fc1.weight", "encoder.fc2.weight"]),
        (["encoder.fc1.*"], ["encoder.fc1.weight", "encoder.fc1.bias"]),
        (["head.bias"], ["head.bias"]),
        (["stem"], ["stem.0.weight"]),
        (["stem.1.weight"], ["stem.1.weight"]),
        (["norm.*"], ["norm.weight", "norm.bias"]),
        (["embedding.weight"], ["embedding.weight"]),
        (["token"], ["token"]),
        (["attention"], ["attention.in_proj_weight", "attention.out_proj.weight"]),
        (["attention.out_proj"], ["attention.out_proj.weight"]),
        (["*.in_proj_weight"], ["attention.in_proj_weight"]),
        (["memory"], [name for name in WEIGHTS if name.startswith("memory")]),
        (["memory.weight_hh*"], ["memory.weight_hh_l0", "memory.weight_hh_l0_reverse"]),
        (["head", "head.weight", "encoder.fc2"], ["encoder.fc2.weight", "head.weight"]),
        (["*"], [*WEIGHTS, "token"]),
        (["*.weight", "memory"], None),
    ],
)
def test_targets(targets, found):
    names = list(find_weights(Net(), targets))
    if found is not None:
        assert sorted(names) == sorted(found)
    assert names == [name for name, _ in Net().named_parameters() if name in names]  # in the module's order


def test_names_of_layers_bring_no_biases_and_no_norms():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    module = nn.ModuleDict({"network": network})
    for pattern in ("network", "network*", "network.*", "n*"):
        assert list(find_weights(module, [pattern])) == ["network.0.weight", "network.2.weight"]


def test_all_biases_on_request():
    names = list(find_weights(Net(), ["*bias*"]))
    assert "head.bias" in names
    assert "memory.bias_ih_l0" in names
    assert all("bias" in name for name in names)


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        (["head"], ["head.weight"]),
        (["head.weight"], ["head.weight"]),
        (["memory", "attention"], [name for name in WEIGHTS if name.startswith(("memory", "attention"))]),
        (["norm"], []),
        (["stem.1"], []),
        (["*_proj*"], [name for name in WEIGHTS if "_proj" in name]),
    ],
)
def test_exclude(exclude, gone):
    assert list(find_weights(Net(), None, exclude)) == [name for name in WEIGHTS if name not in gone]


def test_exclude_of_a_layer_covers_what_was_asked_for_by_name():
    assert "head.bias" not in find_weights(Net(), ["*bias"], ["head"])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("haed", "Did you mean 'head'"), ("encoder.fc3", "Did you mean 'encoder.fc"), ("norm", "no layer with weights")],
)
def test_a_target_that_matches_nothing_is_refused_with_a_hint(pattern, hint):
    with pytest.raises(CompressionError, match=f"targets: '{pattern}' matches no parameter.*") as refusal:
        find_weights(Net(), ["head", pattern])
    assert hint in str(refusal.value)


def test_an_exclusion_that_matches_nothing_is_refused_with_a_hint():
    with pytest.raises(CompressionError, match=r"exclude: 'hed' matches no parameter.*Did you mean 'head'"):
        find_weights(Net(), None, ["hed"])


def test_nothing_left_is_refused():
    with pytest.raises(CompressionError, match="No weight is left"):
        find_weights(nn.LayerNorm(3), None)
    with pytest.raises(CompressionError, match="No weight is left"):
        find_weights(nn.Sequential(nn.Linear(2, 2)), None, ["0"])


def test_parameters_that_are_no_floating_point_numbers_are_refused():
    module = nn.Linear(2, 2)
    module.counts = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(CompressionError, match="'counts' does not hold floating-point"):
        find_weights(module, ["counts"])


def test_names_are_those_without_a_compiled_module_around():
    module = nn.ModuleDict({"network": torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))})
    assert list(find_weights(module, ["network.0"])) == ["network._orig_mod.0.weight"]


def test_a_tied_weight_counts_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert list(find_weights(net, None)) == ["0.weight"]

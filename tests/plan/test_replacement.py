"""Modules replaced by specs and put back; specs that are refused."""

import pytest
import torch
from plan.samples import FACTORED, Net, factor, fingerprint
from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan import ReplaceModule, RestoreModule
from lightning_compress.plan.specs import build_module, check_spec

RELU = {"type": "ReLU"}


def test_replacement_is_what_the_spec_says_with_zero_weights():
    net = Net().eval()
    state = torch.get_rng_state()
    factor().apply(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(p.shape) for p in net.second.parameters()] == [(2, 6), (4, 2), (4,)]
    assert all(p.count_nonzero() == 0 for p in net.second.parameters())
    assert not net.second[0].training
    assert net(torch.randn(3, 5)).shape == (3, 4)


def test_the_original_comes_back_itself():
    net = Net()
    net.second.bias.requires_grad_(False)
    before = fingerprint(net)
    inverse = factor().apply(net)
    assert [name for name, _ in net.named_children()] == ["first", "norm", "second", "twin"]
    assert inverse.apply(net) == factor()
    assert fingerprint(net) == before


def test_flags_within_the_original_stay_unless_the_whole_changes():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()))
    edit = ReplaceModule("0", RELU)
    edit.apply(net).apply(net)
    assert [part.training for part in net.modules()] == [True, True, True, False]
    inverse = edit.apply(net)
    net.eval()
    inverse.apply(net)
    assert not any(part.training for part in net.modules())


def test_a_module_in_two_places_is_replaced_in_both_and_put_back_in_both():
    net = Net()
    before = fingerprint(net)
    inverse = ReplaceModule("again", {"type": "BatchNorm1d", "arguments": {"num_features": 6}}).apply(net)
    assert net.again is net.norm
    assert net.norm.weight.tolist() == [1.0] * 6
    inverse.apply(net)
    assert fingerprint(net) == before


def test_hooks_look_on_at_the_replacement_and_their_handles_remove_them():
    net, seen = nn.Sequential(nn.Linear(4, 4)), []
    handles = [
        net[0].register_forward_pre_hook(lambda module, inputs, options: seen.append("before"), with_kwargs=True),
        net[0].register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__)),
    ]
    inverse = ReplaceModule("0", {"type": "Sequential", "children": [["0", {"type": "Identity"}]]}).apply(net)
    net(torch.ones(1, 4))
    assert seen == ["before", "Sequential"]
    handles[0].remove()
    inverse.apply(net)
    net(torch.ones(1, 4))
    assert seen == ["before", "Sequential", "Linear"]


def test_replacement_takes_the_dtype_of_the_original():
    net = Net()
    net.second.double()
    factor().apply(net)
    assert net.second[0].weight.dtype == torch.float64


def test_spec_is_copied_and_tuples_become_lists():
    spec = {"type": "Conv2d", "arguments": {"in_channels": 1, "out_channels": 2, "kernel_size": (3, 1)}}
    edit = ReplaceModule("x", spec)
    spec["arguments"]["out_channels"] = 9
    assert edit.spec["arguments"] == {"in_channels": 1, "out_channels": 2, "kernel_size": [3, 1]}
    assert edit == ReplaceModule("x", edit.spec)


@pytest.mark.parametrize("place", ["nowhere", "first.weight", "first.0", "trainer"])
def test_a_place_that_does_not_exist_is_refused(place):
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError, match="no submodule"):
        ReplaceModule(place, RELU).apply(net)
    assert fingerprint(net) == before


def test_the_root_is_refused():
    with pytest.raises(PlanError, match="root"):
        ReplaceModule("", RELU)


def test_an_original_that_nobody_kept_is_refused():
    net = Net()
    factor().apply(net)
    with pytest.raises(PlanError, match="nobody kept the original"):
        RestoreModule(factor(), None).apply(net)


CONVOLUTION = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
SPECS = [
    ("Linear", {"in_features": 3, "out_features": 2, "bias": False}),
    ("Conv1d", {**CONVOLUTION, "padding": "same", "padding_mode": "reflect"}),
    ("Conv2d", {**CONVOLUTION, "kernel_size": [1, 3], "stride": [2, 1], "padding": [0, 1], "groups": 2, "bias": False}),
    ("Conv3d", {**CONVOLUTION, "dilation": 2}),
    ("BatchNorm1d", {"num_features": 3, "eps": 1e-3, "momentum": None}),
    ("BatchNorm2d", {"num_features": 3, "affine": False}),
    ("BatchNorm3d", {"num_features": 3, "track_running_stats": False}),
    ("Identity", {}),
    ("ReLU", {}),
    ("Flatten", {"start_dim": 1, "end_dim": -1}),
]


@pytest.mark.parametrize(("kind", "arguments"), SPECS)
def test_every_type_builds_as_torch_does(kind, arguments):
    spec = {"type": kind, "arguments": arguments}
    module = build_module(spec)
    theirs = getattr(nn, kind)(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    assert repr(module) == repr(theirs)
    assert [(n, p.shape) for n, p in module.state_dict().items()] == [
        (n, p.shape) for n, p in theirs.state_dict().items()
    ]
    assert check_spec(spec).elements == sum(tensor.numel() for tensor in theirs.state_dict().values())
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        assert all(torch.equal(module.state_dict()[name], value) for name, value in theirs.state_dict().items())


def nested(depth):
    spec = RELU
    for _ in range(depth):
        spec = {"type": "Sequential", "children": [["0", spec]]}
    return spec


def nested_row(length):
    return {"type": "Sequential", "children": [[str(k), RELU] for k in range(length)]}


def laughs():
    """A thousand children that are each the same thousand children, and so on: small in a file, endless to build."""
    spec = RELU
    for _ in range(7):
        spec = {"type": "Sequential", "children": [[str(name), spec] for name in range(1000)]}
    return spec


def endless():
    spec = {"type": "Sequential", "children": []}
    spec["children"].append(["0", spec])
    return spec


def deep_list():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def linear(**arguments):
    return {"type": "Linear", "arguments": {"in_features": 2, "out_features": 2, **arguments}}


def convolution(**arguments):
    return {"type": "Conv2d", "arguments": {**CONVOLUTION, **arguments}}


HOSTILE = {
    "no mapping": [],
    "no type": {},
    "type of another type": {"type": ["Linear"]},
    "endless type": {"type": deep_list()},
    "long type": {"type": "L" * 10**7},
    "unknown type": {"type": "Linnear", "arguments": {}},
    "a real module, not in the set": {"type": "Softmax"},
    "code": {"type": "os.system", "arguments": {"command": "true"}},
    "surplus key": {"type": "ReLU", "code": "x"},
    "endless keys": {"type": "ReLU", **{str(k): k for k in range(10_000)}},
    "arguments as a list": {"type": "ReLU", "arguments": []},
    "unknown argument": linear(device="cuda"),
    "argument that is no name": {"type": "Linear", "arguments": {1: 2}},
    "missing argument": {"type": "Linear"},
    "bool for int": linear(in_features=True),
    "int for bool": linear(bias=1),
    "zero": linear(in_features=0),
    "negative": linear(in_features=-3),
    "float for int": linear(in_features=2.0),
    "text for int": linear(in_features="2"),
    "huge": linear(in_features=2**31),
    "astronomic": linear(in_features=10**400),
    "product overflows": linear(in_features=2**26 - 1, out_features=2**26 - 1) | {"x": 1},
    "NaN": {"type": "BatchNorm1d", "arguments": {"num_features": 2, "eps": float("nan")}},
    "infinite": {"type": "BatchNorm1d", "arguments": {"num_features": 2, "momentum": float("inf")}},
    "four sizes": convolution(kernel_size=[1, 1, 1, 1]),
    "wrong number of sizes": convolution(kernel_size=[1, 1, 1]),
    "nested sizes": convolution(kernel_size=[[1], [1]]),
    "bools as sizes": convolution(kernel_size=[True, True]),
    "word for a size": convolution(kernel_size="same"),
    "unknown word": convolution(padding="full"),
    "unknown padding": convolution(padding_mode="mirror"),
    "same with a stride": convolution(padding="same", stride=2),
    "groups that do not divide": convolution(groups=3),
    "tensor": convolution(kernel_size=torch.ones(2)),
    "too deep": nested(9),
    "endless": endless(),
    "a billion laughs": laughs(),
    "too many": {"type": "Sequential", "children": [[str(name), RELU] for name in range(1001)]},
    "too many in all": {"type": "Sequential", "children": [[name, nested_row(600)] for name in "ab"]},
    "children as text": {"type": "Sequential", "children": "ab"},
    "child without a name": {"type": "Sequential", "children": [[RELU]]},
    "child with a path": {"type": "Sequential", "children": [["a.b", RELU]]},
    "child with an empty name": {"type": "Sequential", "children": [["", RELU]]},
    "child with a name in use": {"type": "Sequential", "children": [["forward", RELU]]},
    "two of one name": {"type": "Sequential", "children": [["0", RELU], ["0", RELU]]},
    "arguments of a Sequential": {"type": "Sequential", "children": [], "arguments": {}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_spec_outside_the_closed_set_cannot_become_an_edit(case):
    with pytest.raises(PlanError) as refusal:
        ReplaceModule("second", HOSTILE[case])
    assert len(str(refusal.value)) < 2_000
    with pytest.raises(PlanError):
        build_module(HOSTILE[case])


def test_the_deepest_and_the_largest_spec_allowed_are_built():
    check_spec(nested(8))
    assert check_spec({"type": "Sequential", "children": [[str(k), RELU] for k in range(999)]}).modules == 1000
    assert check_spec(FACTORED) == (3, 24)

"""A file is never trusted: whatever it holds is a valid Plan or a PlanError, soon, and nothing is touched."""

import copy
import random
import time

import pytest
import torch
from plan.samples import Net, fingerprint, plan

from lightning_compress.errors import PlanError
from lightning_compress.plan import Plan
from lightning_compress.plan.state import LIMITS

NAN = float("nan")


def state():
    return plan().to_state()


def nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def with_edit(**fields):
    changed = state()
    changed["edits"][0] |= fields
    return changed


def with_slice(place, value):
    changed = state()
    changed["edits"][0]["slices"][0][place] = value
    return changed


def with_attribute(place, value):
    changed = state()
    changed["edits"][0]["attributes"][0][place] = value
    return changed


def with_spec(**fields):
    changed = state()
    changed["edits"][2] |= fields
    return changed


def without(key):
    changed = state()
    del changed["edits"][0][key]
    return changed


def repeated(edit, times):
    """One edit many times: as a file hardly longer than one."""
    return {"version": 1, "edits": [edit] * times}


ROWS = {"kind": "keep", "label": "", "slices": [[f"{k}", 0, 6, [0]] for k in range(50)], "attributes": []}
INDICES = {"kind": "keep", "label": "", "slices": [["x", 0, 4096, torch.arange(4096)]], "attributes": []}
CHILDREN = {"type": "Sequential", "children": [[str(k), {"type": "ReLU"}] for k in range(50)]}
MODULES = {"kind": "replace", "label": "", "module": "x", "spec": CHILDREN}


HOSTILE = {
    "nothing": lambda: None,
    "list": lambda: [],
    "empty": lambda: {},
    "no version": lambda: {"edits": []},
    "surplus key": lambda: {**state(), "code": "import os"},
    "later version": lambda: {**state(), "version": 2},
    "earlier version": lambda: {**state(), "version": 0},
    "version as bool": lambda: {**state(), "version": True},
    "version as float": lambda: {**state(), "version": 1.0},
    "version as text": lambda: {**state(), "version": "1"},
    "version as tensor": lambda: {**state(), "version": torch.ones(2)},
    "endless version": lambda: {**state(), "version": nested()},
    "edits as text": lambda: {**state(), "edits": "keep"},
    "edits as mapping": lambda: {**state(), "edits": {}},
    "edits as tensor": lambda: {**state(), "edits": torch.zeros(3)},
    "too many edits": lambda: {**state(), "edits": [None] * 10**6},
    "edit as a list": lambda: {**state(), "edits": [[]]},
    "edit as nothing": lambda: {**state(), "edits": [None]},
    "unknown kind": lambda: with_edit(kind="execute"),
    "kind as list": lambda: with_edit(kind=["keep"]),
    "endless kind": lambda: with_edit(kind=nested()),
    "long kind": lambda: with_edit(kind="k" * 10**7),
    "kind of another": lambda: with_edit(kind="replace"),
    "surplus field": lambda: with_edit(code="x"),
    "missing field": lambda: without("attributes"),
    "missing label": lambda: without("label"),
    "label as number": lambda: with_edit(label=3),
    "endless label": lambda: with_edit(label=nested()),
    "long label": lambda: with_edit(label="x" * (2**20 + 1)),
    "slices as text": lambda: with_edit(slices="abcd"),
    "slices as mapping": lambda: with_edit(slices={"a": 1}),
    "no slices": lambda: with_edit(slices=[]),
    "short row": lambda: with_edit(slices=[["first.weight", 0, 6]]),
    "row as text": lambda: with_edit(slices=["abcd"]),
    "row as tensor": lambda: with_edit(slices=[torch.arange(4)]),
    "row twice": lambda: with_edit(slices=[["first.bias", 0, 6, [0]]] * 2),
    "name as number": lambda: with_slice(0, 3),
    "name as bytes": lambda: with_slice(0, b"first.weight"),
    "long name": lambda: with_slice(0, "x" * 1001),
    "dimension as bool": lambda: with_slice(1, False),
    "dimension as float": lambda: with_slice(1, 0.0),
    "negative dimension": lambda: with_slice(1, -1),
    "large dimension": lambda: with_slice(1, 8),
    "astronomic dimension": lambda: with_slice(1, 10**400),
    "NaN dimension": lambda: with_slice(1, NAN),
    "size as text": lambda: with_slice(2, "6"),
    "size as tensor": lambda: with_slice(2, torch.tensor(6)),
    "negative size": lambda: with_slice(2, -6),
    "no size": lambda: with_slice(2, 0),
    "huge size": lambda: with_slice(2, 2**62),
    "no indices": lambda: with_slice(3, []),
    "no indices in a tensor": lambda: with_slice(3, torch.zeros(0, dtype=torch.int64)),
    "unsorted": lambda: with_slice(3, [2, 0]),
    "twice": lambda: with_slice(3, [1, 1]),
    "out of range": lambda: with_slice(3, [0, 6]),
    "negative index": lambda: with_slice(3, [-1, 0]),
    "astronomic index": lambda: with_slice(3, [0, 10**400]),
    "bool index": lambda: with_slice(3, [False, True]),
    "float index": lambda: with_slice(3, [0.0, 1.0]),
    "NaN index": lambda: with_slice(3, [NAN]),
    "nested index": lambda: with_slice(3, [[0], [1]]),
    "text of indices": lambda: with_slice(3, "01"),
    "tuple of indices": lambda: with_slice(3, (0, 1)),
    "float tensor": lambda: with_slice(3, torch.tensor([0.0, NAN])),
    "bool tensor": lambda: with_slice(3, torch.tensor([True, False])),
    "int32 tensor": lambda: with_slice(3, torch.tensor([0, 1], dtype=torch.int32)),
    "matrix": lambda: with_slice(3, torch.tensor([[0, 1]])),
    "scalar": lambda: with_slice(3, torch.tensor(1)),
    "meta tensor": lambda: with_slice(3, torch.arange(3, device="meta")),
    "sparse tensor": lambda: with_slice(3, torch.arange(3).to_sparse()),
    "nested tensor": lambda: with_slice(3, torch.nested.nested_tensor([torch.arange(2.0), torch.arange(3.0)])),
    "a petabyte that costs nothing in a file": lambda: with_slice(3, torch.arange(1).expand(2**47)),
    "large and not rising": lambda: with_slice(3, torch.zeros(2**20, dtype=torch.int64)),
    "attributes as text": lambda: with_edit(attributes="abcd"),
    "attribute of three": lambda: with_edit(attributes=[["first", "out_features", 6]]),
    "attribute twice": lambda: with_edit(attributes=[["first", "out_features", 6, 4]] * 2),
    "unknown attribute": lambda: with_attribute(1, "forward"),
    "dunder": lambda: with_attribute(1, "__class__"),
    "attribute as list": lambda: with_attribute(1, ["out_features"]),
    "long attribute": lambda: with_attribute(1, "o" * 10**6),
    "attribute of a number": lambda: with_attribute(0, 1),
    "value as text": lambda: with_attribute(3, "4"),
    "value as bool": lambda: with_attribute(3, True),
    "value as NaN": lambda: with_attribute(3, NAN),
    "negative value": lambda: with_attribute(3, -4),
    "no value": lambda: with_attribute(3, 0),
    "growing value": lambda: with_attribute(3, 7),
    "long value": lambda: with_attribute(3, [1] * 9),
    "module as number": lambda: with_spec(module=1),
    "module as nothing": lambda: with_spec(module=""),
    "long module": lambda: with_spec(module="m" * 1001),
    "spec as text": lambda: with_spec(spec="ReLU"),
    "spec of code": lambda: with_spec(spec={"type": "eval", "arguments": {"source": "1"}}),
    "endless spec": lambda: with_spec(spec=nested()),
}

MISFITS = {
    "unicode name": lambda: with_slice(0, "fïrst.weight\u202e"),
    "name of a method": lambda: with_slice(0, "forward"),
    "name of a module": lambda: with_slice(0, "first"),
    "second name of a tied tensor": lambda: with_slice(0, "twin.weight"),
    "other size": lambda: with_slice(2, 7),
    "dimension that is not there": lambda: with_slice(1, 2),
    "other module": lambda: with_attribute(0, "third"),
    "module that is none": lambda: with_attribute(0, "first.weight"),
    "other value": lambda: with_attribute(2, 9),
    "number for a tuple": lambda: with_edit(attributes=[["first", "out_features", [6], [4]]]),
    "place that is not there": lambda: with_spec(module="nowhere"),
    "replaced by another width": lambda: with_spec(module="first", spec={"type": "ReLU"}),
    "a module larger than any": lambda: with_spec(
        spec={"type": "Linear", "arguments": {"in_features": 2**16, "out_features": 2**16}}
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_state_is_refused_soon_and_in_few_words(case):
    hostile = HOSTILE[case]()
    begun = time.process_time()
    with pytest.raises(PlanError) as refusal:
        Plan.from_state(hostile)
    assert time.process_time() - begun < 5
    assert len(str(refusal.value)) < 2_000


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_that_does_not_fit_leaves_the_network_as_it_was(case):
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError):
        Plan.from_state(MISFITS[case]()).apply_to(net)
    assert fingerprint(net) == before
    assert len(Plan.of(net)) == 0


@pytest.mark.parametrize(("what", "edit"), [("slices", ROWS), ("indices", INDICES), ("modules", MODULES)])
def test_what_a_plan_may_hold_is_counted_over_all_its_edits(monkeypatch, what, edit):
    monkeypatch.setitem(LIMITS, what, 60 * {"slices": 50, "indices": 4096, "modules": 51}[what])
    assert len(Plan.from_state(repeated(edit, 60))) == 60
    with pytest.raises(PlanError, match=f"more than .* {what}"):
        Plan.from_state(repeated(edit, 61))


VALUES = [
    *(None, True, False, 0, 1, -1, 2, 6, 7, 2**31, 2**63, 10**30, 0.0, 0.5, NAN, float("inf"), "", "first", "ReLU"),
    *(
        "keep",
        "replace",
        "out_features",
        "first.weight",
        "x" * 2000,
        "ß\x00",
        b"x",
        [],
        {},
        (),
        [0],
        [0, 1],
        {"type": "ReLU"},
    ),
    *(torch.arange(3), torch.zeros(2), torch.tensor(1), torch.tensor([5, 4]), torch.zeros(0, dtype=torch.int64)),
]


def places(value, path=()):
    """Paths to everything inside nested lists and mappings."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def mutated(value, dice):
    """One random change somewhere: another value, a part left out or doubled, a number moved, two parts swapped."""
    value = copy.deepcopy(value)
    found = [path for path in places(value) if path]
    if not found:
        return value
    path = dice.choice(found)
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    key, other = path[-1], dice.choice(VALUES)
    part, kind = owner[key], dice.randrange(6)
    if kind == 0 and type(part) is int:
        owner[key] = part + dice.choice([-2, -1, 1, 2])
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(part))
    elif kind == 2:
        del owner[key]
    elif kind == 3 and isinstance(owner, dict):
        owner[dice.choice(["code", "kind", "bias", 3, None])] = other
    elif kind == 4 and isinstance(part, torch.Tensor):
        owner[key] = part + torch.randint(
            -1, 2, part.shape, generator=torch.Generator().manual_seed(dice.randrange(99))
        )
    else:
        owner[key] = other
    return value


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_give_a_valid_plan_or_a_plan_error_and_never_half_a_network(seed):
    dice, outcomes = random.Random(seed), {"refused": 0, "misfit": 0, "fits": 0}
    net, original = Net(), state()
    before = fingerprint(net)
    for _ in range(1_000):
        changed = original
        for _ in range(dice.choice([1, 1, 1, 2, 4])):
            changed = mutated(changed, dice)
        try:
            read = Plan.from_state(changed)
        except PlanError:
            outcomes["refused"] += 1
            continue
        assert Plan.from_state(read.to_state()) == read
        try:
            read.apply_to(net)
        except PlanError:
            outcomes["misfit"] += 1
            assert fingerprint(net) == before
            continue
        outcomes["fits"] += 1
        assert Plan.of(net) == read
        net = Net()
        before = fingerprint(net)
    assert min(outcomes.values()) > 10, outcomes

"""Plans: replay in both directions, differences, files, words."""

import json

import pytest
import torch
from plan.samples import Net, factor, fingerprint, keep, plan, shapes
from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan import (
    CHECKPOINT_KEY,
    Journal,
    KeepIndices,
    Plan,
    ReplaceModule,
    Slice,
    condensed,
    explain,
    read_checkpoint,
)


@pytest.mark.parametrize("length", range(5))
def test_replay_gives_a_fresh_network_the_shape(length):
    edited, fresh = Net(), Net()
    for edit in plan().edits[:length]:
        Plan((*Plan.of(edited), edit)).apply_to(edited)
    Plan(plan().edits[:length]).apply_to(fresh)
    assert shapes(fresh) == shapes(edited)
    fresh.load_state_dict(edited.state_dict())
    values = torch.randn(3, fresh.first.in_features)
    assert torch.equal(fresh.eval()(values), edited.eval()(values))


@pytest.mark.parametrize("there", range(5))
@pytest.mark.parametrize("here", range(5))
def test_replay_goes_back_and_forth_between_any_two_lengths(here, there):
    net, fresh = Net(), Net()
    Plan(plan().edits[:here]).apply_to(net)
    Plan(plan().edits[:there]).apply_to(net)
    Plan(plan().edits[:there]).apply_to(fresh)
    assert shapes(net) == shapes(fresh)
    assert Plan.of(net) == Plan(plan().edits[:there])
    assert list(net.state_dict()) == list(fresh.state_dict())


def test_replay_keeps_what_the_common_prefix_left():
    net = Net()
    common = keep(0, 1, 2, 3)
    Plan((common, keep(0, 1, size=4))).apply_to(net)
    weight = net.first.weight.detach().clone()
    Plan((common, keep(1, 2, 3, size=4))).apply_to(net)
    assert torch.equal(net.first.weight[0], weight[1])
    assert net.first.weight[1:].count_nonzero() == 0


def test_replay_of_the_same_plan_touches_nothing():
    net = Net()
    plan().apply_to(net)
    before = fingerprint(net)
    Plan.from_state(plan().to_state()).apply_to(net)
    assert fingerprint(net) == before


def test_difference_is_what_leads_from_one_to_the_other():
    a, b, c = keep(0, 1, 2, 3), keep(0, 1, size=4), keep(2, 3, size=4)
    difference = Plan.diff(Plan((a, b, factor())), Plan((a, c)))
    assert (difference.common, difference.undo, difference.redo) == (1, (b, factor()), (c,))
    assert str(difference).splitlines() == ["1 edits in common", "- factored", "- keep (0, 1)", "+ keep (2, 3)"]
    assert Plan.diff(plan(), plan()).common == 4


def test_state_survives_a_file_that_may_hold_no_code(tmp_path):
    torch.save(plan().to_state(), tmp_path / "plan")
    read = Plan.from_state(torch.load(tmp_path / "plan", weights_only=True))
    assert read == plan()
    assert all(isinstance(edit.label, str) for edit in read)


def test_state_survives_json():
    text = json.dumps(plan().to_state(), default=torch.Tensor.tolist)
    assert Plan.from_state(json.loads(text)) == plan()


def test_file_of_a_view_is_no_larger_than_the_indices(tmp_path):
    indices = torch.arange(10**6)[:6:2]
    torch.save(Plan((KeepIndices((Slice("x", 0, 10, indices),)),)).to_state(), tmp_path / "view")
    assert (tmp_path / "view").stat().st_size < 10_000


def test_a_long_label_comes_back():
    """A cut of a large network names every layer."""
    label = "; ".join(f"12 of 64 units of 'network.layer{k}.conv1'" for k in range(1000))
    assert Plan.from_state(Plan((keep(0, 1, label=label),)).to_state()).edits[0].label == label
    assert len(explain(Plan((keep(0, 1, label=label),)))) < 1000


def test_replacements_out_of_all_proportion_are_refused():
    huge = {"type": "Linear", "arguments": {"in_features": 2**16, "out_features": 2**16}}
    large = {"type": "Linear", "arguments": {"in_features": 2**11, "out_features": 2**11}}
    for edits in ([ReplaceModule("0", huge)], [ReplaceModule("0", large)] * 5):
        net = nn.Sequential(nn.Linear(2, 2))
        before = fingerprint(net)
        with pytest.raises(PlanError, match="no compression"):
            Plan(tuple(edits)).apply_to(net)
        assert fingerprint(net) == before


def test_explain_says_what_was_done_in_order():
    net = Net()
    plan().apply_to(net)
    lines = explain(net).splitlines()
    assert lines[0] == "Plan: 4 edits."
    assert "first.out_features 6 -> 4" in lines[1]
    assert "'norm' became Identity" in lines[3]
    assert lines[4].strip() == "4. keep: 1 tensors cut"
    assert explain(Plan.of(net)) == explain(net)


def test_explain_reads_a_checkpoint(tmp_path):
    journal = Journal()
    journal.add("cut", "two neurons went", epoch=2.5)
    torch.save({CHECKPOINT_KEY: {"plan": plan().to_state(), "journal": journal.to_state()}}, tmp_path / "x.ckpt")
    said = explain(tmp_path / "x.ckpt")
    assert "Plan: 4 edits." in said
    assert "epoch 2.5  cut          two neurons went" in said


def test_explain_of_a_file_without_a_plan_says_why(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(PlanError, match="carries no Plan: none of this package's callbacks"):
        explain(tmp_path / "plain.ckpt")
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    (tmp_path / "empty.ckpt").touch()
    torch.save(Net(), tmp_path / "code.ckpt")
    for name in ("noise", "empty", "code"):
        with pytest.raises(PlanError, match="no checkpoint that can be read safely"):
            explain(tmp_path / f"{name}.ckpt")
    with pytest.raises(FileNotFoundError):
        explain(tmp_path / "nowhere.ckpt")


def test_a_checkpoint_has_both_or_neither():
    assert read_checkpoint({}) is None
    for broken in ([], {"plan": plan().to_state()}, {"journal": []}):
        with pytest.raises(PlanError, match="no plan and journal"):
            read_checkpoint({CHECKPOINT_KEY: broken})


@pytest.mark.parametrize("length", range(5))
def test_the_condensed_plan_leads_to_the_same_network(length):
    long, short = Net(), Net()
    short.load_state_dict(long.state_dict())
    edits = plan().edits[:length]
    Plan(edits).apply_to(long)
    condensed(Plan(edits)).apply_to(short)
    assert shapes(short) == shapes(long)
    values = torch.randn(3, long.first.in_features)
    assert torch.equal(short.eval()(values), long.eval()(values))
    condensed(Plan(edits)).apply_to(long)  # and back and forth between the two
    assert shapes(short) == shapes(long)

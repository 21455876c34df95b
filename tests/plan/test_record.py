"""Transactions, followers, and who knows what has been done to a module."""

import copy
import gc

import pytest
import torch
from plan.samples import Net, factor, fingerprint, keep, plan, shapes
from torch import nn

from lightning_compress.errors import PlanError
from lightning_compress.plan import Attribute, Edit, KeepIndices, Plan, Record, ReplaceModule, Slice, explain


class Shadow:
    """Keeps a copy of every parameter, as an optimizer keeps moments."""

    def __init__(self, module, log=None, fails_at=None, exact=True):
        self.module, self.log, self.fails_at, self.exact = module, log if log is not None else [], fails_at, exact
        self.kept = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def follow(self, edit: Edit):
        self.log.append((self, edit))
        if self.fails_at == len(self.log):
            raise RuntimeError("cannot follow")
        before = self.kept
        names = dict(self.module.named_parameters())
        self.kept = {name: edit.carry(name, value) for name, value in before.items() if name in names}
        assert all(names[name].shape == value.shape for name, value in self.kept.items())
        return (lambda: setattr(self, "kept", before)) if self.exact else None


def test_followers_are_told_in_their_order_and_shaped_like_the_network():
    net, log = Net(), []
    shadows = [Shadow(net, log), Shadow(net, log)]
    record = Record.of(net)
    record.followers += shadows
    record.apply(keep(0, 1, 4))
    assert log == [(shadows[0], keep(0, 1, 4)), (shadows[1], keep(0, 1, 4))]
    record.undo()
    assert [edit.label for _, edit in log[2:]] == ["undo: keep (0, 1, 4)"] * 2
    assert shadows[0].kept["first.weight"].shape == (6, 5)
    assert shadows[0].kept["first.weight"][2].count_nonzero() == 0


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("edit", [keep(0, 1, 4), factor()])
def test_a_follower_that_raises_has_everything_taken_back(edit, fails_at):
    net, log = Net(), []
    net(torch.randn(3, 5)).sum().backward()
    shadows = [Shadow(net, log, fails_at) for _ in range(3)]
    record = Record.of(net)
    record.followers += shadows
    before, kept = fingerprint(net), [shadow.kept for shadow in shadows]
    with pytest.raises(RuntimeError, match="cannot follow"):
        record.apply(edit)
    assert fingerprint(net) == before
    assert net.first.weight.grad is not None
    assert [shadow.kept for shadow in shadows] == kept
    assert (record.edits, len(Plan.of(net))) == ([], 0)
    for shadow in shadows:
        shadow.fails_at = None
    record.apply(edit)
    record.undo()


def test_a_follower_that_cannot_go_back_by_itself_is_told_of_the_inverse():
    net = Net()
    shadow = Shadow(net, exact=False)
    record = Record.of(net)
    record.followers += [shadow, Shadow(net, fails_at=1)]
    with pytest.raises(RuntimeError):
        record.apply(keep(0, 1, 4))
    assert [edit.label for _, edit in shadow.log] == ["keep (0, 1, 4)", "undo: keep (0, 1, 4)"]
    assert torch.equal(shadow.kept["first.weight"][[0, 1, 4]], net.first.weight[[0, 1, 4]])


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_change_that_fails_anywhere_on_its_way_is_taken_back_whole(fails_at):
    """Two edits of its own are undone and four made: whichever the follower fails at, nothing has happened."""
    net = Net()
    record = Record.of(net)
    own = [keep(0, 1, 2, 3), keep(0, 1, 2, size=4)]
    for edit in own:
        record.apply(edit)
    shadow = Shadow(net, fails_at=fails_at)
    record.followers.append(shadow)
    before, kept = fingerprint(net), shadow.kept
    with pytest.raises(RuntimeError):
        plan().apply_to(net)
    assert fingerprint(net) == before
    assert shadow.kept is kept
    assert list(Plan.of(net)) == own


def test_a_plan_that_does_not_fit_in_its_middle_leaves_the_module_as_it_was():
    net = Net()
    before = fingerprint(net)
    with pytest.raises(PlanError, match="shape"):
        Plan((keep(0, 1, 2), keep(0, 1, size=4))).apply_to(net)
    assert fingerprint(net) == before
    assert len(Plan.of(net)) == 0


def test_an_interrupt_amid_a_cut_is_taken_back_too():
    net = Net()

    class Interrupted:
        def follow(self, edit):
            raise KeyboardInterrupt

    Record.of(net).followers.append(Interrupted())
    before = fingerprint(net)
    with pytest.raises(KeyboardInterrupt):
        Record.of(net).apply(keep(0, 1))
    assert fingerprint(net) == before


def test_undo_without_edits_is_refused():
    with pytest.raises(PlanError, match="cannot be undone"):
        Record.of(Net()).undo()


def test_one_module_has_one_record():
    net = Net()
    assert Record.of(net) is Record.of(net)
    assert Record.of(net) is not Record.of(Net())
    assert Record.of(net).module is net


def test_looking_makes_no_record():
    net = nn.Sequential(Net())
    assert len(Plan.of(net)) == 0
    assert Record.find(net) is not Record.find(net)


def test_record_keeps_no_module_alive():
    net = Net()
    plan().apply_to(net)
    record = Record.of(net)
    del net
    gc.collect()
    with pytest.raises(PlanError, match="gone"):
        _ = record.module


def wrapped():
    """A network that was cut inside of a larger one, with another part cut too."""
    whole = nn.Module()
    whole.network, whole.other = Net(), nn.Linear(3, 3)
    prefixed = KeepIndices(
        tuple(Slice(f"network.{part.tensor}", part.dim, part.size, part.kept) for part in keep(0, 2, 3).slices),
        tuple(Attribute(f"network.{c.module}", c.name, c.before, c.after) for c in keep(0, 2, 3).attributes),
        keep(0, 2, 3).label,
    )
    record = Record.of(whole)
    record.journal.add("cut", "three went")
    record.apply(prefixed)
    record.apply(KeepIndices((Slice("other.weight", 0, 3, torch.tensor([1])),), label="other"))
    record.apply(ReplaceModule("network.norm", {"type": "Identity"}))
    return whole


def test_a_part_has_the_part_of_the_plan_below_it():
    whole = wrapped()
    below = Plan.of(whole.network)
    assert below == Plan((keep(0, 2, 3), ReplaceModule("norm", {"type": "Identity"})))
    assert [edit.label for edit in Plan.of(whole.other)] == ["other"]
    assert [part.tensor for part in Plan.of(whole.network.twin).edits[0].slices] == ["weight"]  # tied: by its own name
    assert len(Plan.of(nn.Linear(2, 2))) == 0
    assert "three went" in explain(whole.network)
    fresh = Net()
    below.apply_to(fresh)
    assert shapes(fresh) == shapes(whole.network)


def test_a_part_keeps_its_plan_when_the_whole_is_gone():
    whole = wrapped()
    network, below = whole.network, Plan.of(whole.network)
    del whole
    gc.collect()
    assert Plan.of(network) == below
    around = nn.Sequential(nn.Flatten(), network)
    assert next(part.tensor for part in Plan.of(around).edits[0].slices) == "1.first.weight"


def test_a_module_built_around_a_cut_one_has_its_plan():
    net = Net()
    norm = net.norm
    small = Plan((keep(0, 2, 3), ReplaceModule("norm", {"type": "Identity"})))
    small.apply_to(net)
    around = nn.ModuleDict({"network": net, "head": nn.Linear(4, 3)})
    found = Plan.of(around)
    assert [edit.label for edit in found] == [edit.label for edit in small]
    fresh = nn.ModuleDict({"network": Net(), "head": nn.Linear(4, 3)})
    found.apply_to(fresh)
    assert shapes(fresh) == shapes(around)
    Plan().apply_to(around)
    assert net.first.weight.shape == (6, 5)
    assert net.norm is norm


def test_a_layer_that_was_edited_by_itself_keeps_its_plan_in_a_network():
    layer = nn.Linear(3, 4)
    Plan((KeepIndices((Slice("bias", 0, 4, torch.tensor([0])),), (Attribute("", "out_features", 4, 1),)),)).apply_to(
        layer
    )
    edit = Plan.of(nn.Sequential(nn.ReLU(), layer)).edits[0]
    assert (edit.slices[0].tensor, edit.attributes[0].module) == ("1.bias", "1")


def test_a_deepcopy_starts_with_an_empty_plan_and_can_be_told():
    net = Net()
    plan().apply_to(net)
    twin = copy.deepcopy(net)
    assert len(Plan.of(twin)) == 0
    plan().declare(twin)
    assert Plan.of(twin) == plan()
    with pytest.raises(PlanError, match="nobody kept the original"):
        Plan().apply_to(twin)
    assert Plan.of(twin) == plan()
    Plan(plan().edits[:3]).apply_to(twin)
    assert twin.first.in_features == 5


def test_a_declared_plan_has_to_be_true():
    net = Net()
    with pytest.raises(PlanError, match="which is not what"):
        Plan((keep(0, 2, 3),)).declare(net)
    assert len(Plan.of(net)) == 0
    keep(0, 2, 3).apply(net)
    Plan((keep(0, 2, 3),)).declare(net)
    with pytest.raises(PlanError, match="a Plan of 1 edits of its own"):
        Plan((keep(0, 2, 3),)).declare(net)

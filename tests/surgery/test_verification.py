"""verify_edit lets through what is exact and refuses the rest, before anything is touched."""

import copy

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Attribute, KeepIndices, Slice
from lightning_compress.surgery import TracingInput, find_groups, mask_removed_, merge, verify_edit
from lightning_compress.surgery.verification import accepted, difference

KEPT = torch.tensor([0, 2, 3])
OTHER = torch.tensor([0, 1, 2])


def network(norm=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm or nn.Identity(), nn.Sigmoid(), nn.Conv2d(4, 2, 1))


def edit(out=KEPT, into=KEPT, norm=None, *, bias=True):
    slices = [Slice("0.weight", 0, 4, out), Slice("3.weight", 1, 4, into)]
    slices += [Slice("0.bias", 0, 4, out)] if bias else []
    slices += [Slice(name, 0, 4, out) for name in norm or ()]
    return KeepIndices(tuple(slices), (Attribute("0", "out_channels", 4, 3), Attribute("3", "in_channels", 4, 3)))


@pytest.fixture
def tracing():
    return TracingInput("", (torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)),), {})


def test_a_right_edit_passes(tracing):
    verify_edit(network(), edit(), tracing)


def test_an_edit_that_mixes_up_units_is_refused(tracing):
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CompressionError, match=r"'0'.*'3'.*setting those neurons to zero.*exclude=\('0',\)"):
        verify_edit(net, edit(KEPT, OTHER), tracing)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_edit_that_forgets_the_reader_is_refused(tracing):
    partial = KeepIndices((Slice("0.weight", 0, 4, KEPT), Slice("0.bias", 0, 4, KEPT)))
    with pytest.raises(CompressionError, match=r"does not run.*exclude"):
        verify_edit(network(), partial, tracing)


def test_an_edit_that_changes_the_output_is_refused(tracing):
    outer = KeepIndices((Slice("3.weight", 0, 2, torch.tensor([1])), Slice("3.bias", 0, 2, torch.tensor([1]))))
    with pytest.raises(CompressionError, match=r"\(2, 2, 3, 3\).*\(2, 1, 3, 3\).*exclude=\('3',\)"):
        verify_edit(network(), outer, tracing)


def test_an_edit_that_does_not_fit_is_refused(tracing):
    with pytest.raises(CompressionError, match="no tensor 'x'"):
        verify_edit(network(), KeepIndices((Slice("x", 0, 4, KEPT),)), tracing)


def test_group_normalisation_over_the_cut_channels_is_refused_with_the_reason(tracing):
    norm = edit(norm=("1.weight", "1.bias"))
    one = KeepIndices(norm.slices, (*norm.attributes, Attribute("1", "num_channels", 4, 3)))
    with pytest.raises(CompressionError, match=r"Normalisation over the cut channels \('1'\) cannot be exact.*exclude"):
        verify_edit(network(nn.GroupNorm(1, 4)), one, tracing)


def test_values_that_are_not_finite_are_compared_where_the_masked_network_is(tracing):
    net = network()
    with torch.no_grad():
        net[3].bias[0] = float("nan")
    verify_edit(net, edit(), tracing)
    with pytest.raises(CompressionError, match="setting those neurons"):
        verify_edit(net, edit(KEPT, OTHER), tracing)


def test_the_tolerance_is_relative(tracing):
    net = network()
    with torch.no_grad():
        for scale in (1e-6, 1e6):
            net[3].weight *= scale
            net[3].bias *= scale
            verify_edit(net, edit(), tracing)
            with pytest.raises(CompressionError, match="setting those neurons"):
                verify_edit(net, edit(KEPT, OTHER), tracing)


def test_user_hooks_and_autocast_make_no_difference(tracing):
    net = network()
    net[0].register_forward_hook(lambda module, args, output: output.argsort(0).float())
    net[3].register_forward_pre_hook(lambda *_: pytest.fail("a hook was called"))
    with torch.autocast("cpu", torch.bfloat16):
        verify_edit(net, edit(), tracing)


def test_dropout_that_is_always_on_sees_the_same_random_numbers(tracing):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape[0], 1, *x.shape[2:])

    net = nn.Sequential(*network(), Noise())
    verify_edit(net, edit(), tracing)


def test_masking_zeroes_what_the_edit_takes_out_and_nothing_else():
    net, reference = network(), network()
    mask_removed_(net, edit())
    assert not net[0].weight[1].any()
    assert not net[0].bias[1].any()
    assert not net[3].weight[:, 1].any()
    assert torch.equal(net[0].weight[KEPT], reference[0].weight[KEPT])
    assert torch.equal(net[3].weight[:, KEPT], reference[3].weight[:, KEPT])
    assert torch.equal(net[3].bias, reference[3].bias)


def test_a_branch_that_starts_at_zero_is_tried_out_all_the_same():
    class Branch(nn.Module):
        """A softmax over the units, behind a BatchNorm whose gamma is zero: nothing is seen of it in the outputs."""

        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            return x + self.norm(self.two(self.one(x).softmax(1)))

    groups = find_groups(Branch(), TracingInput("", (torch.randn(2, 3, 4, 4),), {}))
    assert len(groups) == 0
    assert "setting those neurons to zero" in groups.skipped["one"]


def test_a_compiled_network_is_tried_out_uncompiled():
    torch.manual_seed(0)
    calls = []
    compiled = torch.compile(network().eval(), backend=lambda graph, example: calls.append(1) or graph.forward)
    root = nn.ModuleDict({"net": compiled})
    call = TracingInput("net", (torch.randn(2, 1, 5, 5),), {})
    call.run(root)
    calls.clear()
    (group,) = find_groups(root, call)
    assert group.name == "net._orig_mod.0"
    verify_edit(root, group.keep(torch.tensor([0, 3])), call)
    assert not calls


def test_halving_finds_the_items_that_fail():
    kept, reasons = accepted(list(range(9)), lambda some: "bad" if {3, 7} & set(some) else None)
    assert kept == [0, 1, 2, 4, 5, 6, 8]
    assert reasons == {3: "bad", 7: "bad"}
    assert accepted([], lambda some: "never asked") == ([], {})


def test_difference_is_infinite_for_new_nans_and_nothing_for_whole_numbers():
    fine, broken = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert difference([fine], [broken]) == float("inf")
    assert difference([broken], [fine]) == 0
    assert difference([torch.arange(2)], [torch.arange(2) + 1]) == 0
    assert difference([fine, fine * 4], [fine, fine * 5]) == 0.25


def test_edits_of_a_whole_network_are_named_briefly(tracing):
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 2))
    call = TracingInput("", (torch.randn(3, 6),), {})
    groups = find_groups(net, call)
    good = merge([group.keep(torch.arange(3)) for group in groups])
    bad = KeepIndices(good.slices[:-1], good.attributes)
    with pytest.raises(CompressionError, match="and 3 more"):
        verify_edit(net, bad, call)

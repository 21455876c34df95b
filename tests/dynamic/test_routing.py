"""Samples that leave: compaction equals masked routing, is refused where rows interact, and counts honestly."""

import copy
import pickle

import pytest
import torch
from dynamic.exiting import NETWORKS, Deep, with_exits
from support import ConvNet, digits
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import (
    ExitInference,
    attach_exits,
    calibrate_exits,
    collect,
    exit_latencies,
    hang_on,
    place_exits,
    routed,
)
from lightning_compress.dynamic.placement import find_points
from lightning_compress.dynamic.routing import all_exits
from lightning_compress.errors import CompressionError
from lightning_compress.surgery import TracingInput

IMAGES, LABELS = digits()
CONFIDENCES = ("margin", "max_probability", "entropy", "patience")


def masked(network, thresholds, confidence, images):
    """Everything computed for all; then each row's answer is picked: what compaction has to equal."""
    record = collect(network, [(images, torch.zeros(len(images), dtype=torch.int64))], confidence=confidence)
    with torch.no_grad():
        answers = torch.stack(all_exits(network, network.early_exits, (images,), {}))
    exits = record.exits(torch.as_tensor(thresholds))
    return answers[exits, torch.arange(len(images))], exits


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_compaction_equals_masked_routing(kind, confidence, rows):
    network = with_exits(kind, confidence=confidence)
    images = IMAGES[100 : 100 + rows]
    scores = collect(network, [(IMAGES[:200], LABELS[:200])]).scores
    thresholds = scores.quantile(0.5, dim=1) if confidence != "patience" else torch.full((len(scores),), 2.0)
    expected, exits = masked(network, thresholds, confidence, images)
    found = ExitInference(network, thresholds=thresholds).predict(images)
    assert torch.equal(found.exits, exits)
    assert torch.allclose(found.logits, expected, atol=1e-5)
    assert not any(part._forward_hooks for part in network.modules())


def test_an_exit_inside_a_residual_block_is_refused():
    network = ConvNet().eval()
    call = TracingInput("", (IMAGES[:8],), {})
    with pytest.raises(CompressionError, match="skip connection"):
        attach_exits(network, call, ["branch"])


class Centred(nn.Module):
    """Rows interact: the mean of the batch is taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.second(hidden - hidden.mean(dim=0))


def test_rows_that_interact_are_refused():
    with pytest.raises(CompressionError, match="rows of a batch interact"):
        attach_exits(Centred().eval(), TracingInput("", (IMAGES[:8],), {}), ["first"])


def test_rows_that_interact_are_refused_by_inference_too():
    network = with_exits("vector")

    class Interacting(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    network[2] = nn.Sequential(network[2], Interacting())
    with pytest.raises(CompressionError, match="rows of a batch interact"):
        ExitInference(network, thresholds=[0.1, 0.1]).predict(IMAGES[:8])


def test_an_empty_batch_gives_empty_answers():
    inference = ExitInference(with_exits(), thresholds=[0.0, 0.0])
    for found in (inference(IMAGES[:0]), inference.budgeted(IMAGES[:0], macs=1e9)):
        assert found.logits.shape == (0, 10)
        assert found.exits.shape == (0,)
        assert found.relative_macs != found.relative_macs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_exits_work_in_every_precision(dtype):
    network = NETWORKS["conv"][0]().eval().to(dtype)
    images = IMAGES[:9].to(dtype)
    hang_on(network, "", attach_exits(network, TracingInput("", (images,), {}), ("stages.0",)))
    found = ExitInference(network, thresholds=[float("-inf")])(images)
    assert found.logits.dtype == dtype
    assert found.exits.tolist() == [0] * 9
    assert network.early_exits.costs.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda network: ExitInference(network, thresholds="ab"), "no numbers"),
        (lambda network: ExitInference(network, thresholds=[0.1, float("nan")]), "a number for each"),
        (lambda network: ExitInference(network).budgeted(IMAGES[:5], macs=float("nan")), "multiply-accumulates"),
        (lambda network: ExitInference(network).anytime(IMAGES[:5], seconds=-1.0), "0 or more"),
        (lambda network: ExitInference(network, thresholds=[0, 0], confidence=lambda a, b: a)(IMAGES[:5]), "one score"),
        (lambda network: ExitInference(network, thresholds=[0, 0], confidence=lambda a, b: a[0, 0])(IMAGES), "score"),
        (lambda network: exit_latencies(network, IMAGES[:0]), "empty"),
        (lambda network: attach_exits(Deep(), TracingInput("", (IMAGES[:5],), {}), ("fc",), pool=0), "pool=0"),
        (lambda network: attach_exits(Deep(), TracingInput("", (IMAGES[:0],), {}), ("fc",)), "empty"),
        (lambda network: attach_exits(Deep(), TracingInput("", (IMAGES[:5],), {}), "fc"), "one name"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(call, message):
    with pytest.raises(CompressionError, match=message):
        call(with_exits())


def test_the_exit_behind_which_rows_cannot_leave_is_named():
    network = NETWORKS["residual"][0]().eval()
    with pytest.raises(CompressionError, match="leaving at 'branch'"):
        attach_exits(network, TracingInput("", (IMAGES[:8],), {}), ["stem", "branch"])


def test_macs_of_a_batch_are_those_of_what_was_computed():
    network = with_exits("conv")
    calibrate_exits(network, [(IMAGES[:300], LABELS[:300])], macs=0.5)
    inference = ExitInference(network)
    images = IMAGES[300:400]
    found = inference.predict(images)
    plain = copy.deepcopy(network)
    del plain.early_exits
    assert found.full_macs == lc.measure(plain, images).macs
    counts = torch.bincount(found.exits, minlength=3).tolist()
    heads = [layer.weight.numel() for layer in network.early_exits.heads]
    points = {point.name: point.macs for point in find_points(plain, TracingInput("", (images,), {}))[0]}
    per_row = [
        points["stages.0"] + heads[0],
        points["stages.1"] + sum(heads),
        lc.measure(plain, images[:1]).macs + sum(heads),
    ]
    assert found.macs == sum(count * cost for count, cost in zip(counts, per_row, strict=True))


def test_heads_that_nobody_leaves_at_are_not_asked_and_not_counted():
    network = with_exits("conv")
    inference = ExitInference(network, thresholds=[float("inf")] * 2)
    found = inference.predict(IMAGES[:5])
    assert found.macs == found.full_macs
    network.early_exits.logits = None  # would be called
    inference.predict(IMAGES[:5])


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.9])
def test_a_budget_is_kept_exactly_and_used(mean):
    network = with_exits("conv")
    inference = ExitInference(network)
    budget = mean * inference.plain_cost
    found = inference.budgeted(IMAGES[:101], macs=budget)
    assert found.macs <= 101 * budget
    assert sorted(found.exits.unique().tolist())[0] == 0


def test_the_surest_rows_leave_in_the_budgeted_mode():
    network = with_exits("conv")
    inference = ExitInference(network)
    shares = [0.5, 0.0, 0.5]
    found = inference.budgeted(IMAGES[:40], macs=inference.plain_cost * 2, shares=shares)
    scores = collect(network, [(IMAGES[:40], LABELS[:40])]).scores[0]
    left = found.exits == 0
    assert int(left.sum()) == 20
    assert float(scores[left].min()) >= float(scores[~left].max())


def test_anytime_stops_where_the_limit_is_reached():
    network = with_exits("conv")
    inference = ExitInference(network, thresholds=[float("inf")] * 2)
    costs = network.early_exits.costs.tolist()
    assert inference.anytime(IMAGES[:6], macs=costs[1]).exits.tolist() == [1] * 6
    assert inference.anytime(IMAGES[:6], macs=costs[1] - 1).exits.tolist() == [0] * 6
    assert inference.anytime(IMAGES[:6], macs=costs[2]).exits.tolist() == [2] * 6
    assert inference.anytime(IMAGES[:1], seconds=0.0).exits.tolist() == [0]
    assert inference.anytime(IMAGES[:6], seconds=60.0).exits.tolist() == [2] * 6
    with pytest.raises(CompressionError, match="the first exit takes"):
        inference.anytime(IMAGES[:6], macs=1.0)
    with pytest.raises(CompressionError, match="one of them"):
        inference.anytime(IMAGES[:6])


def test_anytime_computes_nothing_behind_its_limit():
    network = with_exits("conv")
    network.stages[2].forward = None
    found = ExitInference(network, check=False).anytime(IMAGES[:6], macs=float(network.early_exits.costs[1]))
    assert found.logits.shape == (6, 10)


def test_inside_routed_the_networks_own_call_lets_rows_leave():
    network = with_exits("conv")
    calibrate_exits(network, [(IMAGES[:300], LABELS[:300])], macs=0.5)
    expected = ExitInference(network).predict(IMAGES[:50])
    with torch.no_grad(), routed(network) as tally:
        logits = network(IMAGES[:50])
        duplicate = pickle.loads(pickle.dumps(network))
    assert torch.equal(logits, expected.logits)
    assert tally.exits.tolist() == torch.bincount(expected.exits, minlength=3).tolist()
    assert tally.relative_macs == pytest.approx(expected.relative_macs)
    assert "forward" not in vars(network)
    with torch.no_grad():
        assert torch.allclose(duplicate(IMAGES[:50]), network(IMAGES[:50]))


def test_exits_are_placed_at_shares_of_the_macs_outside_of_skip_connections():
    network = ConvNet().eval()
    call = TracingInput("", (IMAGES[:8],), {})
    assert place_exits(network, call, [0.1]) == ["norm"]  # the branch lies within a residual add
    with pytest.raises(CompressionError, match="Give fewer shares"):
        place_exits(network, call, [0.05, 0.1, 0.2, 0.3])
    deep = Deep().eval()
    points, total = find_points(deep, call)
    cost = {point.name: point.macs / total for point in points}
    placed = place_exits(deep, call, [0.1, 0.4])
    assert placed == ["stages.0", "stages.1"]
    assert [cost[name] for name in placed] == pytest.approx([0.02, 0.35], abs=0.01)


def test_a_network_without_exits_says_how_to_get_them():
    with pytest.raises(CompressionError, match="EarlyExits"):
        ExitInference(ConvNet())
    with pytest.raises(CompressionError, match="a number for each of 2 exits"):
        ExitInference(with_exits("conv"), thresholds=[0.5])


def test_the_part_of_a_module_that_has_exits_is_found():
    inner = with_exits("conv")
    outer = nn.Sequential(nn.Identity(), inner)
    found = ExitInference(outer, thresholds=[0.0, 0.0]).predict(IMAGES[:4])
    assert found.exits.tolist() == [0] * 4


def test_fresh_heads_hang_on_a_sequential_without_changing_it():
    network = NETWORKS["vector"][0]().eval()
    before = network(IMAGES[:4])
    bank = attach_exits(network, TracingInput("", (IMAGES[:4],), {}), ["1"])
    hang_on(network, "", bank)
    assert torch.equal(network(IMAGES[:4]), before)

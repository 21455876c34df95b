"""The search over quantiles against every combination, and the promise on data whose risk is known."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lightning_compress.dynamic import (
    ExitRecord,
    calibrate_exits,
    drop_p_value,
    guaranteed_thresholds,
    search_for_cost,
    search_for_drop,
)
from lightning_compress.dynamic.guarantee import harms_and_benefits
from lightning_compress.errors import CompressionError

COSTS = torch.tensor([0.1, 0.35, 1.0])


def record(seed: int, number: int = 300, final: float = 0.9) -> ExitRecord:
    """Samples whose exits err the more rarely, the higher their score is; truly so, whatever the seed."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, number, generator=generator)
    chances = torch.stack([0.55 + 0.45 * scores[0], 0.7 + 0.3 * scores[1], torch.full((number,), final)])
    return ExitRecord(scores, torch.rand(3, number, generator=generator) < chances, COSTS)


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_thresholds_for_a_drop_are_nearly_those_of_an_exhaustive_search(seed):
    data = record(seed, 60)
    grids = [[float("inf"), *data.scores[exit_].tolist()] for exit_ in range(2)]
    outcomes = [data.evaluate(torch.tensor(pair)) for pair in product(*grids)]
    least = min(one.cost for one in outcomes if one.drop <= 0.02)
    found = data.evaluate(search_for_drop(data, 0.02, quantiles=1000))
    assert found.drop <= 0.02 + 1e-9
    assert found.cost <= least * 1.3


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.6])
def test_the_most_accurate_thresholds_within_a_budget_keep_it(budget):
    data = record(1, 60)
    grids = [[float("inf"), *data.scores[exit_].tolist()] for exit_ in range(2)]
    outcomes = [data.evaluate(torch.tensor(pair)) for pair in product(*grids)]
    best = max(one.accuracy for one in outcomes if one.cost <= budget)
    found = data.evaluate(search_for_cost(data, budget, quantiles=1000))
    assert found.cost <= budget + 1e-9
    assert found.accuracy >= best - 0.035


def test_a_budget_out_of_reach_is_refused():
    with pytest.raises(CompressionError, match="Put an exit earlier"):
        search_for_cost(record(0), 0.05)


def test_shares_and_costs_are_those_of_the_samples():
    data = ExitRecord(torch.tensor([[0.9, 0.1, 0.1], [0.0, 0.9, 0.1]]), torch.ones(3, 3, dtype=torch.bool), COSTS)
    outcome = data.evaluate(torch.tensor([0.5, 0.5]))
    assert outcome.shares.tolist() == pytest.approx([1 / 3] * 3)
    assert outcome.cost == pytest.approx(float(COSTS.sum()) / 3)
    with pytest.raises(CompressionError, match="rise"):
        ExitRecord(data.scores, data.correct, COSTS.flip(0))


@pytest.mark.parametrize(("harms", "number", "risk"), [(0, 100, 0.03), (3, 250, 0.02), (6, 250, 0.05)])
def test_without_benefits_the_test_is_the_binomial_one(harms, number, risk):
    assert drop_p_value(harms, 0, number, risk) == pytest.approx(binom.cdf(harms, number, risk), rel=1e-6)


@pytest.mark.parametrize("benefit", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize(("number", "risk"), [(60, 0.05)])
def test_the_p_value_is_valid_at_every_share_of_benefits(number, risk, benefit):
    """Exactly, by enumeration: under the null hypothesis it falls below delta with a probability of at most delta."""
    from scipy.stats import multinomial

    law = multinomial(number, [benefit + risk, benefit, 1 - 2 * benefit - risk])
    spread = 5 * (number * (benefit + risk)) ** 0.5 + 3
    middle = number * benefit
    ups = range(max(0, int(middle + number * risk - spread)), min(number, int(middle + number * risk + 2)) + 1)
    downs = range(max(0, int(middle - spread)), min(number, int(middle + spread)) + 1)
    rejected = 0.0
    for up, down in product(ups, downs):
        if up + down <= number and up - down < number * risk:
            probability = law.pmf([up, down, number - up - down])
            if probability > 1e-6 and drop_p_value(up, down, number, risk) <= 0.1:
                rejected += probability
    assert rejected <= 0.1 + 1e-3


def test_a_better_result_never_has_a_larger_p_value():
    values = [[drop_p_value(up, down, 100, 0.05) for down in range(4)] for up in range(4)]
    assert np.all(np.diff(values, axis=0) >= -1e-9)
    assert np.all(np.diff(values, axis=1) <= 1e-9)


def true_drop(thresholds: torch.Tensor) -> float:
    """Of a rule, on a sample so large that its risk is known."""
    harms, benefits = harms_and_benefits(LARGE, thresholds)
    return (harms - benefits) / LARGE.scores.shape[1]


LARGE = record(12345, 150_000)


@pytest.mark.slow
def test_the_promise_is_kept_on_data_of_known_risk():
    risk, delta, draws = 0.02, 0.1, 60
    broken, costs, naive = 0, [], 0
    for seed in range(draws):
        data = record(seed, 300)
        found = guaranteed_thresholds(data, risk=risk, delta=delta, seed=seed)
        broken += true_drop(found.thresholds) > risk
        costs.append(found.outcome.relative_cost)
        naive += true_drop(search_for_drop(data, risk)) > risk
    assert broken <= delta * draws + 2 * (delta * (1 - delta) * draws) ** 0.5
    assert naive > broken  # thresholds that are only fitted break it more often
    assert np.mean(costs) < 1.0


def test_nothing_is_promised_where_nothing_can_be():
    data = record(0, 40)
    found = guaranteed_thresholds(data, risk=0.001, delta=0.01)
    assert torch.isinf(found.thresholds).all()
    assert found.outcome.drop == 0


def test_tuning_samples_of_their_own_leave_all_others_to_test():
    data, other = record(0, 200), record(1, 300)
    assert guaranteed_thresholds(data, tuning=other).samples == 200
    assert guaranteed_thresholds(data, tuning_share=0.25).samples == 150


@pytest.mark.parametrize("options", [{"risk": 0.0}, {"delta": 1.0}, {"tuning_share": 0.0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(CompressionError, match="each in"):
        guaranteed_thresholds(record(0), **options)


def test_one_target_at_a_time():
    from dynamic.exiting import with_exits

    with pytest.raises(CompressionError, match="needs one of"):
        calibrate_exits(with_exits(), [], drop=0.0, macs=0.5)
    with pytest.raises(CompressionError, match="no samples"):
        calibrate_exits(with_exits(), [], drop=0.0)
    with pytest.raises(CompressionError, match="exit_latencies"):
        calibrate_exits(with_exits(), [], milliseconds=1.0)


@pytest.mark.parametrize(
    "target",
    [
        {"drop": -0.1},
        {"drop": "a"},
        {"drop": float("nan")},
        {"macs": 0.0},
        {"macs": float("nan")},
        {"risk": "a"},
        {"risk": 0.1, "delta": 2.0},
    ],
)
def test_targets_out_of_range_are_refused(target):
    from dynamic.exiting import with_exits

    with pytest.raises(CompressionError, match="|".join(target)):
        calibrate_exits(with_exits(), [], **target)


def test_labels_that_are_no_classes_are_refused_and_empty_batches_passed_over():
    from dynamic.exiting import with_exits

    images, labels = torch.randn(6, 64), torch.arange(6)
    for wrong in (labels[:3], torch.eye(6)):
        with pytest.raises(CompressionError, match="a class for each"):
            calibrate_exits(with_exits(), [(images, wrong)], drop=0.0)
    with pytest.raises(CompressionError, match="no samples"):
        calibrate_exits(with_exits(), [(images[:0], labels[:0])], drop=0.0)
    calibrate_exits(with_exits(), [(images, labels), (images[:0], labels[:0])], drop=0.0)

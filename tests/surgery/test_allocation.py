"""The best options within a budget, folding aside: what is chosen, what is refused, what recalibration keeps."""

import random
from itertools import product

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.surgery import Option, allocate, recalibrate_if_better_


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_within_the_budget_loses_less(seed):
    chance = random.Random(seed)
    options = {
        str(layer): [
            Option(10.0, 0.0),
            *(Option(chance.uniform(1, 12), chance.uniform(0, 1), k) for k in range(4)),
            Option(1.0, 1.0, 9),
        ]
        for layer in range(5)
    }
    for budget in (25, 35, 49):
        taken = allocate(options, budget)
        assert sum(option.cost for option in taken.values()) <= budget
        best = min(
            sum(one.error for one in rows)
            for rows in product(*options.values())
            if sum(one.cost for one in rows) <= budget
        )
        assert sum(option.error for option in taken.values()) == pytest.approx(best, abs=1e-3)


def test_a_budget_below_the_cheapest_options_is_refused_with_what_they_cost():
    with pytest.raises(CompressionError, match="4 together, above the budget of 3"):
        allocate({"a": [Option(9, 0.0), Option(4, 0.5)]}, 3)


def test_new_statistics_are_kept_only_where_they_lower_the_loss():
    batches = [torch.tensor([[1.0], [3.0]])]
    for sign, kept in ((-1, True), (1, False)):
        net = nn.BatchNorm1d(1).eval()
        better, before, after = recalibrate_if_better_(
            net, batches, loss=lambda net, s=sign: s * float(net.running_mean)
        )
        assert (better, before, after) == (kept, 0.0, sign * 2.0)
        assert net.running_mean.item() == (2.0 if kept else 0.0)

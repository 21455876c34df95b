"""The penalty makes weights of lower rank, which then lose less."""

import lightning as L
import pytest
import torch
from support import User, fit

from lightning_compress.architecture import LowRankRegularization, nuclear_gradient
from lightning_compress.errors import CompressionError


def test_the_gradient_is_that_of_the_sum_of_singular_values():
    weight = torch.randn(5, 3, 2, dtype=torch.float32, requires_grad=True)
    torch.linalg.svdvals(weight.flatten(1))[2:].sum().backward()
    assert torch.allclose(nuclear_gradient(weight, 2), weight.grad, atol=1e-4)


def test_trained_weights_have_less_in_their_small_singular_values():
    tails = {}
    for strength in (0.0, 3e-2):
        L.seed_everything(0)
        module = User("mlp", "sgd")
        fit(module, LowRankRegularization(strength, rank=0.25), max_epochs=5)
        values = torch.linalg.svdvals(module.network[0].weight.detach())
        tails[strength] = float(values[8:].square().sum() / values.square().sum())
    assert tails[3e-2] < 0.5 * tails[0.0]


@pytest.mark.parametrize("options", [{"strength": "a"}, {"rank": "a"}, {"rank": 1.0}, {"every": 0}, {"until": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(CompressionError, match=next(iter(options))):
        LowRankRegularization(**options)

"""Every criterion that the package finds: what may be relied on, whichever it is."""

import functools

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Evidence, needs
from lightning_compress.pruning.criteria.apoz import apoz
from lightning_compress.pruning.criteria.magnitude import magnitude
from lightning_compress.pruning.criteria.random import random
from lightning_compress.pruning.evidence import needs_of
from lightning_compress.pruning.neurons import judge
from lightning_compress.pruning.weights import judge_weights
from lightning_compress.registry import names, resolve

PACKAGE = "lightning_compress.pruning.criteria"
ALL = names(PACKAGE)
OF_WEIGHTS = [name for name in ALL if not needs_of(resolve(name, PACKAGE))]
SHAPES = [(1, 1), (7, 3), (4, 3, 2, 2), (5,)]


def neurons(units=6, weights=11):
    return Evidence("fc", torch.randn(units, weights), zero_share=torch.rand(units), of_neurons=True)


def test_the_criteria_are_found():
    assert {"magnitude", "apoz", "random"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_each_says_in_words_what_it_does(name):
    assert resolve(name, PACKAGE).__doc__


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_scores_of_weights_are_finite_and_of_the_weights_shape(name, shape):
    scores = judge_weights(resolve(name, PACKAGE), "fc", torch.randn(shape))
    assert scores.shape == shape
    assert scores.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_weights_are_judged_in_single_precision_and_left_alone(name, dtype):
    weight = torch.randn(4, 4, dtype=dtype).requires_grad_()
    before = weight.detach().clone()
    assert judge_weights(resolve(name, PACKAGE), "fc", weight).dtype == torch.float32
    assert torch.equal(weight, before)
    assert weight.grad is None


@pytest.mark.parametrize("units", [1, 6])
@pytest.mark.parametrize("name", ALL)
def test_neurons_get_one_finite_score_each(name, units):
    scores = judge(resolve(name, PACKAGE), neurons(units))
    assert scores.shape == (units,)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_the_same_evidence_and_random_state_give_the_same_scores(name):
    criterion, evidence = resolve(name, PACKAGE), neurons()
    scores = []
    for _ in range(2):
        torch.manual_seed(3)
        scores.append(criterion(evidence))
    assert torch.equal(*scores)


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
def test_the_order_of_neurons_does_not_matter(name):
    criterion, evidence = resolve(name, PACKAGE), neurons()
    order = torch.randperm(6)
    shuffled = Evidence("fc", evidence.weight[order], evidence.zero_share[order], of_neurons=True)
    torch.testing.assert_close(judge(criterion, shuffled), judge(criterion, evidence)[order])


def test_magnitude_of_a_neuron_is_its_norm_against_the_mean():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 10.0]])
    assert judge(magnitude, Evidence("fc", weight, of_neurons=True)).tolist() == [1.0, 0.0, 2.0]
    assert judge(magnitude, Evidence("fc", 1000 * weight, of_neurons=True)).tolist() == [1.0, 0.0, 2.0]


def test_neurons_of_nothing_but_zeros_can_be_judged():
    assert judge(magnitude, Evidence("fc", torch.zeros(3, 2), of_neurons=True)).tolist() == [0.0, 0.0, 0.0]


def test_apoz_ranks_by_zeros_and_refuses_where_there_are_none():
    shares = torch.tensor([0.9, 0.0, 0.4])
    assert judge(apoz, Evidence("fc", torch.zeros(3, 1), shares)).argsort().tolist() == [0, 2, 1]
    for nothing in (None, torch.zeros(3)):
        with pytest.raises(CompressionError, match=r"'fc'.*exact zero.*exclude=\(\"fc\",\)"):
            judge(apoz, Evidence("fc", torch.zeros(3, 1), nothing))


def test_random_neurons_are_as_random_whatever_they_are_made_of():
    """Were random weights summed up, wide layers would all come out alike and narrow ones would go first."""
    torch.manual_seed(0)
    spread = [judge(random, Evidence("fc", torch.zeros(500, width), of_neurons=True)).std() for width in (1, 1000)]
    torch.testing.assert_close(spread[0], spread[1], rtol=0.1, atol=0)


def test_what_a_criterion_needs_is_known_of_a_partial_too():
    @needs("zero_share")
    def mine(evidence, power):
        return evidence.zero_share**power

    assert needs_of(functools.partial(functools.partial(mine), power=2)) == {"zero_share"}
    assert needs_of(len) == frozenset()


@pytest.mark.parametrize("scores", [torch.ones(3), torch.ones(2, 2), torch.ones(())])
def test_scores_of_another_shape_are_refused(scores):
    with pytest.raises(CompressionError, match="shape"):
        judge(lambda _: scores, Evidence("fc", torch.ones(4, 2), of_neurons=True))
    with pytest.raises(CompressionError, match="shape"):
        judge_weights(lambda _: scores, "fc", torch.ones(4, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_with_the_layer_named(bad):
    weight = torch.ones(4, 2)
    weight[1, 1] = bad
    with pytest.raises(CompressionError, match="NaN or infinity for 'fc'"):
        judge(magnitude, Evidence("fc", weight, of_neurons=True))
    with pytest.raises(CompressionError, match="NaN or infinity for 'fc'"):
        judge_weights(magnitude, "fc", weight)

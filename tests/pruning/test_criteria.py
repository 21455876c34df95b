"""Every criterion that the package finds: what may be relied on, whichever it is."""

import functools

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Evidence, needs
from lightning_compress.pruning.criteria.apoz import apoz
from lightning_compress.pruning.criteria.magnitude import magnitude
from lightning_compress.pruning.criteria.random import random
from lightning_compress.pruning.evidence import NEURONS_ONLY, OUTPUTS, WEIGHTS_ONLY, needs_of, repair_of
from lightning_compress.pruning.neurons import judge
from lightning_compress.pruning.weights import judge_weights
from lightning_compress.registry import names, resolve

PACKAGE = "lightning_compress.pruning.criteria"
ALL = names(PACKAGE)
OF_WEIGHTS = [name for name in ALL if not needs_of(resolve(name, PACKAGE)) & NEURONS_ONLY]
OF_NEURONS = [name for name in ALL if not needs_of(resolve(name, PACKAGE)) & WEIGHTS_ONLY]
SHAPES = [(1, 1), (7, 3), (4, 3, 2, 2)]
PER_UNIT = OUTPUTS | {"scale"}


def evidence(name, weight, of_neurons=False):
    """All that the criterion needs, made up."""
    given = {}
    for need in needs_of(resolve(name, PACKAGE)) - {"of_neurons"}:
        flat = weight.flatten(1)
        if need in PER_UNIT:
            given[need] = torch.rand(len(weight))
        elif need == "moments":
            rows = torch.randn(20, flat.shape[1], dtype=torch.float64)
            given[need] = rows.T @ rows / 20
        else:
            given[need] = torch.randn(weight.shape).abs() if need == "input_norm" else torch.randn(weight.shape)
    return Evidence("fc", weight, of_neurons=of_neurons, **given)


def neurons(name, units=6, weights=11):
    return evidence(name, torch.randn(units, weights), of_neurons=True)


def judged(criterion, weight):
    return judge_weights(criterion, Evidence("fc", weight.detach().float()))


def test_the_criteria_are_found():
    asked = "magnitude gradient taylor snip grasp movement fisher obd wanda lamp obs"
    assert set(asked.split()) <= set(OF_WEIGHTS)
    of_neurons = "apoz mean_activation activation_variance batch_norm_scale geometric_median feature_map_rank random"
    assert set(of_neurons.split()) <= set(OF_NEURONS)


@pytest.mark.parametrize("name", ALL)
def test_each_says_in_words_what_it_does(name):
    assert resolve(name, PACKAGE).__doc__


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_scores_of_weights_are_finite_and_of_the_weights_shape(name, shape):
    scores = judge_weights(resolve(name, PACKAGE), evidence(name, torch.randn(shape)))
    assert scores.shape == shape
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_evidence_is_left_alone(name):
    given = neurons(name) if name in OF_NEURONS else evidence(name, torch.randn(6, 11))
    before = {key: value.clone() for key, value in vars(given).items() if isinstance(value, torch.Tensor)}
    resolve(name, PACKAGE)(given)
    assert all(torch.equal(value, getattr(given, key)) for key, value in before.items())


@pytest.mark.parametrize("units", [1, 6])
@pytest.mark.parametrize("name", OF_NEURONS)
def test_neurons_get_one_finite_score_each(name, units):
    scores = judge(resolve(name, PACKAGE), neurons(name, units))
    assert scores.shape == (units,)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_the_same_evidence_and_random_state_give_the_same_scores(name):
    criterion = resolve(name, PACKAGE)
    given = neurons(name) if name in OF_NEURONS else evidence(name, torch.randn(6, 11))
    scores = []
    for _ in range(2):
        torch.manual_seed(3)
        scores.append(criterion(given))
    assert torch.equal(*scores)


@pytest.mark.parametrize("name", [name for name in OF_NEURONS if name != "random"])
def test_the_order_of_neurons_does_not_matter(name):
    criterion, given = resolve(name, PACKAGE), neurons(name)
    order = torch.randperm(6)
    values = {key: value[order] for key, value in vars(given).items() if isinstance(value, torch.Tensor)}
    shuffled = Evidence("fc", of_neurons=True, **values)
    torch.testing.assert_close(judge(criterion, shuffled), judge(criterion, given)[order])


@pytest.mark.parametrize("name", [name for name in ALL if needs_of(resolve(name, PACKAGE)) - {"of_neurons"}])
def test_evidence_that_is_missing_is_named(name):
    if name != "apoz":
        with pytest.raises(CompressionError, match="'fc': the criterion looks at .*needs"):
            resolve(name, PACKAGE)(Evidence("fc", torch.ones(2, 2), of_neurons=name in OF_NEURONS))


def test_needs_that_there_are_none_of_are_refused():
    with pytest.raises(CompressionError, match="No evidence is called 'gradeint'. Did you mean 'gradient'"):
        needs("gradeint")


def test_geometric_median_drops_what_others_can_stand_in_for():
    """Of three alike and one apart the alike go first, though their norms are the largest."""
    weight = torch.tensor([[10.0, 10.0], [10.0, 10.1], [10.1, 10.0], [0.0, 0.5]])
    scores = judge(resolve("geometric_median", PACKAGE), Evidence("fc", weight, of_neurons=True))
    assert scores.argmax() == 3


def test_obs_is_the_error_of_the_output_once_the_rest_is_fitted_anew():
    """Against the exact solution: least squares over the other inputs, for each weight by itself."""
    rows = torch.randn(200, 5, dtype=torch.float64)
    rows[:, 4] = rows[:, 0] + 0.1 * rows[:, 4]
    moments = rows.T @ rows / 200
    weight = torch.randn(1, 5)
    scores = resolve("obs", PACKAGE)(Evidence("fc", weight, moments=moments))[0]
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    for k in range(5):
        rest = [j for j in range(5) if j != k]
        fit = torch.linalg.solve(damped[rest][:, rest], damped[rest, k]) * float(weight[0, k])
        change = torch.zeros(5, dtype=torch.float64)
        change[k], change[rest] = -float(weight[0, k]), fit
        assert float(change @ damped @ change) == pytest.approx(float(scores[k]), rel=1e-4)


def test_refitted_weights_have_their_zeros_and_lose_less_than_without():
    torch.manual_seed(0)
    rows = torch.randn(500, 30, dtype=torch.float64) @ torch.randn(30, 30, dtype=torch.float64)
    layer = Evidence("fc", torch.randn(8, 30), moments=rows.T @ rows / 500)
    scores = resolve("obs", PACKAGE)(layer)
    keep = scores > scores.flatten().median()
    fitted = repair_of(resolve("obs", PACKAGE))(layer, keep)
    assert not fitted[~keep].any()
    plain = layer.weight * keep
    best = torch.zeros(8, 30, dtype=torch.float64)
    for k, stays in enumerate(keep):
        best[k, stays] = torch.linalg.lstsq(rows[:, stays], (rows @ layer.weight[k].double())[:, None]).solution[:, 0]
    errors = [((layer.weight - one).double() @ rows.T).square().mean() for one in (best, fitted, plain)]
    assert errors[0] <= errors[1] < 1.2 * errors[0]
    assert errors[1] < 0.8 * errors[2]


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
        judged(lambda _: scores, torch.ones(4, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_with_the_layer_named(bad):
    weight = torch.ones(4, 2)
    weight[1, 1] = bad
    with pytest.raises(CompressionError, match="NaN or infinity for 'fc'"):
        judge(magnitude, Evidence("fc", weight, of_neurons=True))
    with pytest.raises(CompressionError, match="NaN or infinity for 'fc'"):
        judged(magnitude, weight)


def test_neurons_of_layers_with_large_inputs_are_not_all_that_wanda_keeps():
    """Pictures of 0 to 16 in the first layer: what is compared among layers is relative to the layer."""
    judged = resolve("wanda", PACKAGE)
    weight = torch.randn(8, 4)
    scores = [judged(Evidence("fc", weight, of_neurons=True, input_norm=torch.full((8, 4), size))) for size in (1, 16)]
    torch.testing.assert_close(*scores)
    assert scores[0].shape == (8,)

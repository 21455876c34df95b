"""Every loss that the folder holds: gradients, limits, precision, and a reference written from its paper."""

import inspect
from functools import partial
from math import log

import pytest
import torch
from torch.nn import functional as F

from lightning_compress import registry
from lightning_compress.distillation.callback import LOSSES
from lightning_compress.distillation.precision import outputs_of

NAMES = registry.names(LOSSES)
DIVERGENCES = {"kd": 1, "reverse_kl": 1, "jensen_shannon": 1 / 4, "standardized": 1}
SHAPES = {"per_pixel": (3, 4, 2, 5), "per_token": (3, 5, 4)}


def outputs(name, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES.get(name, (6, 5))
    student, teacher = (2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


def loss(name, temperature=3.0):
    """The loss as a function of two outputs, with labels where it wants them."""
    function = registry.resolve(name, LOSSES)
    parameters = inspect.signature(function).parameters
    if "labels" in parameters and parameters["labels"].default is inspect.Parameter.empty:
        function = partial(function, labels=torch.tensor([0, 1, 2, 3, 4, 0]))
    return partial(function, temperature=temperature) if "temperature" in parameters else function


def mean_rows(value):
    return value.flatten(1).sum(1).mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_the_gradient_equals_finite_differences(name, temperature):
    student, teacher = outputs(name)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(name, temperature)(logits, teacher), (student,), eps=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_zero_for_equal_outputs_and_positive_otherwise(name):
    student, teacher = outputs(name)
    assert loss(name)(teacher, teacher).item() == pytest.approx(0, abs=1e-7)
    assert loss(name)(student, teacher).item() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_computed_in_single_precision_under_autocast(name):
    student, teacher = (value.float().bfloat16() for value in outputs(name))
    expected = loss(name)(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(name)(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_huge_logits_give_finite_losses_and_gradients(name):
    student, teacher = (100 * value.float() for value in outputs(name))
    student.requires_grad_()
    value = loss(name, 1.0)(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dist"}))
def test_the_loss_is_a_mean_over_the_batch(name):
    """Twice the same batch is the same loss (correlations over the batch aside)."""
    student, teacher = outputs(name)
    function = registry.resolve(name, LOSSES)
    options = {"labels": torch.tensor([0, 1, 2, 3, 4, 0])} if name == "dkd" else {}
    if "temperature" in inspect.signature(function).parameters:
        options["temperature"] = 3.0
    once = function(student, teacher, **options)
    options = {key: torch.cat([v, v]) if key == "labels" else v for key, v in options.items()}
    twice = function(torch.cat([student, student]), torch.cat([teacher, teacher]), **options)
    assert once.item() == pytest.approx(twice.item())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_at_high_temperature_the_loss_tends_to_the_squared_difference_of_logits_over_classes(name):
    student, teacher = outputs(name)
    student, teacher = (value - value.mean(1, keepdim=True) for value in (student, teacher))
    compared = [v / v.std(1, keepdim=True) if name == "standardized" else v for v in (student, teacher)]
    limit = DIVERGENCES[name] * (compared[0] - compared[1]).square().sum(1).mean() / (2 * student.shape[1])
    assert loss(name, 1e4)(student, teacher).item() == pytest.approx(limit.item(), rel=1e-3)


def test_soft_targets_at_high_temperature_have_the_gradient_of_matching_logits():
    student, teacher = outputs("kd")
    student, teacher = (value - value.mean(1, keepdim=True) for value in (student, teacher))
    gradients = []
    for name in ("kd", "logit_mse"):
        logits = student.clone().requires_grad_()
        loss(name, 1e5)(logits, teacher).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradients[1], (student - teacher) / 5 / len(student))


def test_a_sigmoid_at_high_temperature_tends_to_an_eighth_of_the_squared_difference():
    student, teacher = outputs("sigmoid_kd")
    limit = (student - teacher).square().sum(1).mean() / 8
    assert loss("sigmoid_kd", 1e4)(student, teacher).item() == pytest.approx(limit.item(), rel=1e-3)


def test_the_worked_example_of_temperature():
    """100, 10 and 1 at T = 100 are no longer all or nothing."""
    softened = F.softmax(torch.tensor([100.0, 10.0, 1.0]) / 100, dim=0)
    assert [round(p, 2) for p in softened.tolist()] == [0.56, 0.23, 0.21]
    assert F.softmax(torch.tensor([100.0, 10.0, 1.0]), dim=0)[0].item() == pytest.approx(1)


# -- references: the papers' formulas, element by element -------------------------------------------------------------


def soften(logits, temperature):
    return torch.exp(logits / temperature) / torch.exp(logits / temperature).sum(1, keepdim=True)


def kd(student, teacher, temperature):
    p, q = soften(teacher, temperature), soften(student, temperature)
    return temperature**2 * mean_rows(p * (p.log() - q.log()))


def reverse_kl(student, teacher, temperature):
    return kd(teacher, student, temperature)


def jensen_shannon(student, teacher, temperature):
    p, q = soften(teacher, temperature), soften(student, temperature)
    m = (p + q) / 2
    return temperature**2 * mean_rows(p * (p / m).log() + q * (q / m).log()) / 2


def logit_mse(student, teacher, temperature):
    return mean_rows((student - teacher) ** 2) / 2 / student.shape[1]


def dkd(student, teacher, temperature):
    """KD = TCKD + (1 - p_t) NCKD, decoupled: alpha TCKD + beta NCKD with alpha 1, beta 8."""
    p, q = soften(teacher, temperature), soften(student, temperature)
    total = 0.0
    for row, label in enumerate([0, 1, 2, 3, 4, 0]):
        pt, qt = p[row, label], q[row, label]
        total += pt * (pt / qt).log() + (1 - pt) * ((1 - pt) / (1 - qt)).log()
        others = [k for k in range(5) if k != label]
        hat_p, hat_q = p[row, others] / (1 - pt), q[row, others] / (1 - qt)
        total += 8 * (hat_p * (hat_p / hat_q).log()).sum()
    return temperature**2 * total / len(p)


def dist(student, teacher, temperature):
    p, q = soften(teacher, temperature), soften(student, temperature)
    between = [1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q, strict=True)]
    within = [1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return torch.stack(between).mean() + torch.stack(within).mean()


def standardized(student, teacher, temperature):
    scaled = [(z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (student, teacher)]
    return kd(*scaled, temperature)


def sigmoid_kd(student, teacher, temperature):
    p, q = torch.sigmoid(teacher / temperature), torch.sigmoid(student / temperature)
    return temperature**2 * mean_rows(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


def regression(student, teacher, temperature):
    return ((student - teacher) ** 2).mean()


def per_pixel(student, teacher, temperature):
    pixels = [kd(student[:, :, i, j], teacher[:, :, i, j], temperature) for i in range(2) for j in range(5)]
    return sum(pixels) / 10


def per_token(student, teacher, temperature):
    return sum(kd(student[:, i], teacher[:, i], temperature) for i in range(5)) / 5


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_equals_the_papers_formula(name):
    student, teacher = outputs(name, seed=3)
    expected = globals()[name](student, teacher, 3.0).item()
    assert loss(name)(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_decoupled_soft_targets_with_the_teachers_doubt_as_weight_are_soft_targets():
    """Equation 6 of the paper."""
    student, teacher = (value[:1] for value in outputs("dkd"))
    label = torch.tensor([2])
    doubt = 1 - soften(teacher, 3.0)[0, 2].item()
    function = registry.resolve("dkd", LOSSES)
    found = function(student, teacher, 3.0, label, target_weight=1.0, other_weight=doubt)
    assert found.item() == pytest.approx(loss("kd")(student, teacher).item())


def test_padding_tokens_do_not_count():
    student, teacher = outputs("per_token")
    labels = torch.zeros(3, 5, dtype=torch.long)
    labels[:, 3:] = -100
    function = registry.resolve("per_token", LOSSES)
    assert function(student, teacher, 2.0, labels).item() == pytest.approx(
        function(student[:, :3], teacher[:, :3], 2.0).item()
    )


def test_pixels_of_a_coarser_teacher_are_interpolated():
    student, teacher = torch.zeros(2, 3, 8, 8), torch.randn(2, 3, 1, 1)
    expected = loss("kd")(torch.zeros(2, 3), teacher.flatten(1))
    assert loss("per_pixel")(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_largest_jensen_shannon_divergence_is_log_2():
    sure = torch.tensor([[500.0, 0.0]])
    assert loss("jensen_shannon", 1.0)(sure, sure.flip(1)).item() == pytest.approx(log(2))


def test_every_loss_says_what_it_reads():
    others = {"per_pixel": "pixels", "per_token": "tokens", "regression": "values", "sigmoid_kd": "labels"}
    for name in NAMES:
        assert outputs_of(registry.resolve(name, LOSSES)) == others.get(name, "classes")
    assert outputs_of(F.mse_loss) == "any"

"""Losses on features: the papers' formulas, gradients, and adapters between any two shapes."""

from math import exp

import pytest
import torch
from torch.nn import functional as F

import lightning_compress as lc
from lightning_compress import registry
from lightning_compress.distillation.adapters import Adapter, ToTeacherShape, adapter_of
from lightning_compress.distillation.taps import FEATURES, Tap, TapSet

NAMES = registry.names(FEATURES)
RELATIONS = ["similarity", "rkd", "pkt"]
SHAPES = {"vector": (6,), "tokens": (9, 5), "map": (4, 3, 3), "larger map": (7, 6, 6)}


def features(shape, seed=0, count=5):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(name):
    """The loss between two features of one shape, what it learns aside."""
    function = registry.resolve(name, FEATURES)
    if name == "vid":
        return lambda student, teacher: function(student, teacher, torch.full((student.shape[1],), 0.7).double())
    if name == "reviewkd":
        return lambda student, teacher: function((student,), (teacher,))
    if name == "crd":
        return lambda student, teacher: function(student.flatten(1), teacher.flatten(1))
    return function


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_equals_finite_differences(name):
    student, teacher = features((3, 4, 4)).requires_grad_(), features((3, 4, 4), 1)
    assert torch.autograd.gradcheck(lambda one: loss(name)(one, teacher), (student,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_least_for_equal_features(name):
    student, teacher = features((3, 4, 4)), features((3, 4, 4), 1)
    least = loss(name)(teacher, teacher)
    assert least < loss(name)(student, teacher)
    if name not in ("vid", "crd"):
        assert least.item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_computed_in_single_precision_under_autocast(name):
    student, teacher = features((3, 4, 4)).float(), features((3, 4, 4), 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(name)(student, teacher)
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found, loss(name)(student, teacher), rtol=0, atol=0)


# -- references -------------------------------------------------------------------------------------------------------


def hint(s, t):
    return ((s - t) ** 2).sum() / s.numel()


def attention(s, t):
    maps = [(f**2).sum(1).flatten(1) for f in (s, t)]
    found, expected = (one / one.norm(dim=1, keepdim=True) for one in maps)
    return ((found - expected) ** 2).mean()


def similarity(s, t):
    gram = [f.flatten(1) @ f.flatten(1).T for f in (s, t)]
    found, expected = (one / one.norm(dim=1, keepdim=True) for one in gram)
    return ((found - expected) ** 2).sum() / len(s) ** 2


def huber(a, b):
    d = abs(a - b)
    return 0.5 * d**2 if d <= 1 else d - 0.5


def rkd(s, t):
    s, t, n = s.flatten(1), t.flatten(1), len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    mean = [sum((f[i] - f[j]).norm() for i, j in pairs) / len(pairs) for f in (s, t)]
    distance = sum(huber((s[i] - s[j]).norm() / mean[0], (t[i] - t[j]).norm() / mean[1]) for i, j in pairs) / n**2

    def angle(f, i, j, k):
        e, g = f[i] - f[j], f[k] - f[j]
        return e @ g / (e.norm() * g.norm()) if e.norm() > 0 and g.norm() > 0 else torch.tensor(0.0)

    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    angles = sum(huber(angle(s, *one), angle(t, *one)) for one in triplets) / n**3
    return distance + 2 * angles


def pkt(s, t):
    chances = []
    for f in (s.flatten(1), t.flatten(1)):
        kernel = (F.cosine_similarity(f[:, None], f[None], dim=2) + 1) / 2
        kernel.fill_diagonal_(1e-7)
        chances.append(kernel / kernel.sum(1, keepdim=True))
    q, p = chances
    return (p * (p / q).log()).sum() / len(s)


def nst(s, t):
    total = 0.0
    for a, b in zip(s.flatten(2), t.flatten(2), strict=True):
        a, b = (one / one.norm(dim=1, keepdim=True) for one in (a, b))
        total += sum(((x @ y) ** 2).mean() * sign for x, y, sign in ((a, a.T, 1), (b, b.T, 1), (a, b.T, -2)))
    return total / len(s)


def vid(s, t):
    """-log q(t|s) = sum log sigma + (t - mu)^2 / (2 sigma^2) + constant, a mean over elements here."""
    variance = torch.tensor(0.7)
    return (variance.sqrt().log() + (t - s) ** 2 / (2 * variance)).mean()


def crd(s, t):
    s, t = (f.flatten(1) / f.flatten(1).norm(dim=1, keepdim=True) for f in (s, t))
    total = 0.0
    for a, b in ((s, t), (t, s)):
        for i in range(len(s)):
            scores = [exp((a[i] @ b[j]).item() / 0.1) for j in range(len(s))]
            total -= torch.tensor(scores[i] / sum(scores)).log() / len(s) / 2
    return total


def reviewkd(s, t):
    """HCL of 4x4 maps: full size, then 2 and 1 positions a side with weights 1/2 and 1/4, divided by their sum."""
    total = ((s - t) ** 2).mean()
    for size, weight in ((2, 0.5), (1, 0.25)):
        pooled = [f.unflatten(2, (size, -1)).unflatten(4, (size, -1)).mean(dim=(3, 5)) for f in (s, t)]
        total = total + weight * ((pooled[0] - pooled[1]) ** 2).mean()
    return total / 1.75


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_equals_the_papers_formula(name):
    student, teacher = features((3, 4, 4), 2), features((3, 4, 4), 3)
    assert float(loss(name)(student, teacher)) == pytest.approx(float(globals()[name](student, teacher)), rel=1e-5)


# -- adapters ---------------------------------------------------------------------------------------------------------


def tap_set(name, student, teacher):
    found = {"a": features(SHAPES[student]).float()}
    expected = [{"b": features(SHAPES[teacher], 1).float()}]
    return TapSet([Tap("a", "b", loss=name)], found, expected, {}), found, expected


@pytest.mark.parametrize("teacher", SHAPES)
@pytest.mark.parametrize("student", SHAPES)
@pytest.mark.parametrize("name", ["hint", "vid", "crd", *RELATIONS])
def test_features_of_any_two_shapes_can_be_compared(name, student, teacher):
    taps, found, expected = tap_set(name, student, teacher)
    found["a"].requires_grad_()
    taps(found, expected).backward()
    assert found["a"].grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in taps.parameters())


@pytest.mark.parametrize("name", ["attention", "nst"])
def test_maps_of_different_sizes_and_channels_can_be_compared(name):
    for student, teacher in (("map", "larger map"), ("larger map", "map")):
        taps, found, expected = tap_set(name, student, teacher)
        assert 0 < taps(found, expected).item() < 10


@pytest.mark.parametrize("name", ["attention", "nst"])
def test_vectors_have_no_positions(name):
    with pytest.raises(lc.CompressionError, match="similarity"):
        tap_set(name, "vector", "map")


def test_stages_are_reviewed_from_deep_to_shallow():
    found = {"a": features((4, 8, 8)).float().requires_grad_(), "b": features((6, 4, 4)).float().requires_grad_()}
    expected = [{"c": features((5, 8, 8), 1).float(), "d": features((9, 4, 4), 1).float()}]
    taps = TapSet([Tap(("a", "b"), ("c", "d"), loss="reviewkd")], found, expected, {})
    taps(found, expected).backward()
    assert all(one.grad.abs().sum() > 0 for one in found.values())
    with pytest.raises(lc.CompressionError, match="make a Tap for each"):
        Tap(("a", "b"), loss="hint")


def test_between_equal_widths_an_adapter_begins_as_the_identity():
    taps, found, _ = tap_set("hint", "map", "map")
    assert taps(found, [{"b": found["a"]}]).item() == pytest.approx(0, abs=1e-12)


def test_every_process_builds_the_same_adapters_and_the_random_state_stays():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = tap_set("hint", "map", "vector")[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    two = tap_set("hint", "map", "vector")[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_which_losses_learn_an_adapter():
    learns = {name for name in NAMES if adapter_of(registry.resolve(name, FEATURES)) is not Adapter}
    assert learns == {"hint", "vid", "crd", "reviewkd"}
    assert adapter_of(registry.resolve("hint", FEATURES)) is ToTeacherShape

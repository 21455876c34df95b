"""Figures of fidelity, values over time, transfer sets, the bias of a missing class, where logits lie."""

from math import cos, pi

import pytest
import torch
from torch.distributions import Beta
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

import lightning_compress as lc
from lightning_compress.distillation import (
    Fidelity,
    Ramp,
    TransferSet,
    expected_calibration_error,
    fit_class_bias,
)
from lightning_compress.distillation.engine import among_known, labels_among_known
from lightning_compress.distillation.outputs import labels_in, logits_in
from lightning_compress.distillation.ramp import as_value


def pair(count=200):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(count, 5, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(0, 5, (count,), generator=generator)


def test_fidelity_over_batches_is_fidelity_over_everything():
    student, teacher, labels = pair()
    whole, parts = Fidelity(), Fidelity()
    whole.update(student, teacher, labels)
    for start in range(0, 200, 60):
        parts.update(*(value[start : start + 60] for value in (student, teacher, labels)))
    assert whole.compute() == pytest.approx(parts.compute())


def test_fidelitys_figures_are_what_their_names_say():
    student, teacher, labels = pair()
    fidelity = Fidelity()
    fidelity.update(student, teacher, labels)
    figures = fidelity.compute()
    p, q = teacher.softmax(1), student.softmax(1)
    assert figures["agreement"] == pytest.approx((student.argmax(1) == teacher.argmax(1)).float().mean().item())
    assert figures["kl_to_teacher"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    nll = torch.nn.functional.cross_entropy(student, labels).item()
    assert figures["student_nll"] == pytest.approx(nll, rel=1e-5)
    ece = multiclass_calibration_error(teacher.softmax(1), labels, num_classes=5, n_bins=15).item()
    assert figures["teacher_ece"] == pytest.approx(ece, rel=1e-4)
    assert expected_calibration_error(teacher.softmax(1), labels) == pytest.approx(ece, rel=1e-4)


def test_without_labels_only_the_comparison_is_given():
    student, teacher, _ = pair()
    fidelity = Fidelity()
    assert fidelity.compute() == {}
    fidelity.update(student, teacher, None)
    assert fidelity.compute().keys() == {"agreement", "kl_to_teacher"}


def test_a_ramp_is_constant_before_and_after():
    ramp = Ramp(8.0, 2.0, begin=0.25, until=0.75, shape="cosine")
    assert [ramp(at) for at in (0.0, 0.25, 0.75, 1.0)] == [8.0, 8.0, 2.0, 2.0]
    assert ramp(0.375) == pytest.approx(8 - 6 * (1 - cos(pi / 4)) / 2)
    assert Ramp(1.0, 3.0)(0.5) == 2.0


@pytest.mark.parametrize("bad", [{"until": 0.0}, {"begin": 0.8, "until": 0.5}, {"shape": "cubic"}])
def test_bad_ramps_are_refused(bad):
    with pytest.raises(lc.CompressionError, match="Ramp"):
        Ramp(1.0, 2.0, **bad)


def test_a_ramp_out_of_range_is_refused():
    with pytest.raises(lc.CompressionError, match=r"alpha=1\.2"):
        as_value({"start": 0.5, "end": 1.2}, "alpha", low=0, high=1)


def test_a_pass_through_a_transfer_set_meets_every_sample_once():
    transfer = TransferSet(TensorDataset(torch.arange(12).float().view(12, 1), torch.zeros(12)), 4)
    one = torch.cat([transfer.batch(step) for step in range(3)]).flatten().sort().values
    assert one.tolist() == list(range(12))
    assert not torch.equal(transfer.batch(0), transfer.batch(3))
    assert torch.equal(transfer.batch(0), transfer.batch(0))


def test_processes_share_out_the_transfer_set():
    transfer = TransferSet(torch.arange(12).float().view(12, 1), 3)
    batches = [transfer.batch(step, process, 2) for step in range(2) for process in range(2)]
    assert torch.cat(batches).flatten().sort().values.tolist() == list(range(12))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_mixup_combines_two_samples_with_beta_shares(alpha):
    inputs = torch.eye(2000)
    mixed = TransferSet(inputs, 2000, mixup=alpha, seed=1).batch(0)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2000))
    assert (mixed > 0).sum(1).max() <= 2
    largest = mixed.max(1).values
    drawn = Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((20000,))
    assert largest.mean().item() == pytest.approx(torch.maximum(drawn, 1 - drawn).mean().item(), abs=0.02)


def test_the_bias_of_a_missing_class_is_the_one_that_makes_fewest_errors():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    logits = torch.randn(300, 3, generator=generator)
    logits[torch.arange(300), labels] += 3
    shifted = logits - torch.tensor([0.0, 0.0, 6.0])
    bias = fit_class_bias(shifted, labels, [2])
    assert bias[:2].tolist() == [0, 0]
    assert bias[2].item() == pytest.approx(6.0, abs=1.0)
    errors = ((shifted + bias).argmax(1) != labels).sum()
    assert errors <= (logits.argmax(1) != labels).sum()


def test_where_logits_and_labels_lie():
    class Output:
        logits = torch.ones(1)

    one = torch.zeros(2)
    for output in (one, {"logits": one, "x": 1}, (one, None), [one]):
        assert logits_in(output) is one
    assert logits_in(Output()) is Output.logits
    with pytest.raises(lc.CompressionError, match="No logits in an output of type dict"):
        logits_in({"scores": one})
    assert labels_in({"x": 1, "targets": one}) is one
    assert labels_in((one, "text")) is None
    assert labels_in(one) is None


def test_labels_follow_the_classes_that_a_teacher_knows():
    """A perfect teacher of the classes 1 and 2, and a perfect student of all three."""
    labels = torch.tensor([1, 2, 2, 0])
    perfect = 20.0 * torch.eye(3)[labels]
    teacher = perfect.clone()
    teacher[:, 0] = -torch.inf
    fidelity = Fidelity()
    fidelity.update(*among_known(perfect, teacher), labels_among_known(labels, teacher))
    assert fidelity.compute()["teacher_nll"] < 1e-3
    assert fidelity.compute()["student_nll"] < 1e-3

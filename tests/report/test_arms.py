"""Paired comparisons over resplits: intervals that are not too narrow, runs that are not run twice."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import t, ttest_1samp
from support import User, fit

import lightning_compress as lc
from lightning_compress.report.arms import Comparison, run_arms
from lightning_compress.report.controls import distillation_arms
from lightning_compress.report.intervals import corrected_interval


def test_without_overlap_the_interval_is_students():
    values = [0.3, 1.2, -0.4, 0.9, 2.0]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = corrected_interval(values, test_to_train=0.0)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_correction_is_that_of_the_paper():
    values = [0.3, 1.2, -0.4, 0.9, 2.0]
    half = t.ppf(0.95, 4) * np.sqrt((1 / 5 + 0.5) * np.var(values, ddof=1))
    found = corrected_interval(values, test_to_train=0.5, confidence=0.9)
    assert (found.mean, found.high - found.mean) == pytest.approx((np.mean(values), half))


def test_over_resplits_the_plain_interval_misses_the_truth_too_often_and_the_corrected_does_not():
    """Two estimators of equal worth, compared on overlapping halves of one sample."""
    generator, missed = np.random.default_rng(0), {0.0: 0, 1.0: 0}
    for _ in range(200):
        sample = generator.normal(size=100)
        halves = [generator.permutation(100) for _ in range(10)]
        differences = [sample[half[:50]].mean() for half in halves]
        for ratio in missed:
            interval = corrected_interval(differences, test_to_train=ratio)
            missed[ratio] += not interval.low <= 0 <= interval.high
    assert missed[1.0] / 200 < 0.08 < missed[0.0] / 200


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [([1.0], {"test_to_train": 0.0}, "at least 2"), ([1.0, 2.0], {"test_to_train": -1.0}, "test_to_train=-1")],
)
def test_bad_input_is_refused(values, options, message):
    with pytest.raises(lc.CompressionError, match=message):
        corrected_interval(values, **options)


def test_arms_are_paired_by_split_and_finished_runs_are_read(tmp_path):
    ran = []

    def arm(name, shift):
        def run(split):
            ran.append((name, split))
            return {"accuracy": 90.0 + split + shift}

        return run

    arms = {"plain": arm("plain", 0.0), "taught": arm("taught", 2.0)}
    first = run_arms(arms, range(3), tmp_path, test_to_train=1.0)
    again = run_arms(arms, range(4), tmp_path, test_to_train=1.0)
    assert len(ran) == 8
    difference = again.difference("taught", "plain", "accuracy")
    assert (difference.mean, difference.low, difference.count) == (2.0, 2.0, 4)
    assert first.values("plain", "accuracy") == [90.0, 91.0, 92.0]
    assert json.loads((tmp_path / "taught-3.json").read_text()) == {"accuracy": 95.0}
    with pytest.raises(lc.CompressionError, match="Did you mean 'taught'"):
        Comparison(first.figures, 1.0).values("tought", "accuracy")


def test_the_controls_are_what_they_are_called():
    """Label smoothing is a teacher that knows nothing; pseudo-labels are the teacher's most probable classes."""
    teacher = torch.nn.Linear(64, 10)
    arms = distillation_arms(teacher, 10, smoothing=0.2, alpha=0.7, temperature=3.0)
    assert arms["no teacher"] is None
    logits = torch.randn(8, 10)
    labels = torch.randint(0, 10, (8,))
    smooth = arms["label smoothing"]()
    engine = smooth.engine
    members = torch.zeros(1, 8, 10)
    mixed = 0.8 * torch.nn.functional.cross_entropy(logits, labels) + 0.2 * engine.compare(logits, members, 1.0, None)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    assert (mixed - expected).item() == pytest.approx(-0.2 * np.log(10), abs=1e-5), "but for a constant"
    hard = arms["pseudo-labels"]()
    sure = torch.nn.functional.one_hot(labels, 10).float()[None]
    found = hard.engine.compare(logits, sure, 1.0, None)
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    for build in list(arms.values())[1:]:
        fit(User(), build(), max_epochs=1)

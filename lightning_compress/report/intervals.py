"""Intervals of differences between runs whose training sets overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

from lightning_compress.errors import CompressionError


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: of the differences.
        low: lower bound.
        high: upper bound.
        count: number of differences.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def corrected_interval(differences: Sequence[float], *, test_to_train: float, confidence: float = 0.95) -> Interval:
    """Interval of the mean of paired differences over random resplits of one data set, as Nadeau and Bengio correct it.

    Resplits share most of their data, so the plain t-interval is too narrow: the variance 1/n of the mean becomes
    1/n + test_to_train. Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003.

    Args:
        differences: one for each resplit, of two methods on the same split and seed.
        test_to_train: number of test samples divided by that of training samples; 0 for independent runs, where it is
            the plain interval of Student's t.
        confidence: in (0, 1).

    Raises:
        CompressionError: fewer than two differences, or a number out of its range.

    >>> print(corrected_interval([1.0, 2.0, 3.0], test_to_train=0.0))
    +2.00 [-0.48, +4.48]
    >>> print(corrected_interval([1.0, 2.0, 3.0], test_to_train=1.0))
    +2.00 [-2.97, +6.97]
    """
    count = len(differences)
    if count < 2:
        raise CompressionError(f"{count} differences have no interval; run at least 2 resplits.")
    if test_to_train < 0 or not 0 < confidence < 1:
        raise CompressionError(f"test_to_train={test_to_train}, confidence={confidence}: at least 0, and in (0, 1).")
    mean = fmean(differences)
    width = t.ppf((1 + confidence) / 2, count - 1) * stdev(differences) * (1 / count + test_to_train) ** 0.5
    return Interval(mean, float(mean - width), float(mean + width), count)

"""How faithful a student is to its teacher, and how far either can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

BINS = 15


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Mean distance between how sure and how right a network is, over 15 bins of sureness, in [0, 1].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.

    Args:
        probabilities: (N, C).
        labels: (N,).

    >>> expected_calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1]))
    0.0
    """
    return float(_gap(_bins(probabilities, labels)) / len(labels))


class Fidelity:
    """Sums over a validation: agreement, divergence, likelihood and calibration of a student and its teacher.

    >>> fidelity = Fidelity()
    >>> fidelity.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    >>> fidelity.compute()["agreement"]
    1.0
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(6 + 6 * BINS, dtype=torch.float64)

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
        """Add a batch: logits (N, ..., C) of both, labels (N, ...) where there are some."""
        labels = labels.flatten() if labels is not None and labels.shape == student.shape[:-1] else None
        student, teacher = student.flatten(0, -2).double(), teacher.flatten(0, -2).double()
        agree = (student.argmax(1) == teacher.argmax(1)).sum()
        divergence = kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True)
        sums = [student.new_tensor(len(student)), agree, divergence]
        bins = student.new_zeros(6 * BINS)
        if labels is not None and not labels.is_floating_point():
            valid = (labels >= 0) & (labels < student.shape[1])
            student, teacher, labels = student[valid], teacher[valid], labels[valid]
            sums += [labels.new_tensor(len(labels))]
            sums += [cross_entropy(logits, labels, reduction="sum") for logits in (student, teacher)]
            bins = torch.cat([_bins(logits.softmax(1), labels).flatten() for logits in (student, teacher)])
        padded = torch.zeros(6, dtype=torch.float64)
        padded[: len(sums)] = torch.stack([value.double().cpu() for value in sums])
        self._sums += torch.cat([padded, bins.cpu()])

    def all_reduce(self, device: torch.device) -> None:
        """Add the other processes' sums; all of them must call it."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            sums = self._sums.to(device)
            distributed.all_reduce(sums)
            self._sums = sums.cpu()

    def compute(self) -> dict[str, float]:
        """``agreement``, ``kl_to_teacher``, and where there were labels ``student_nll``, ``teacher_nll``,
        ``student_ece`` and ``teacher_ece``; empty where nothing was seen.
        """
        count, agree, divergence, labelled, student, teacher = self._sums[:6].tolist()
        if not count:
            return {}
        figures = {"agreement": agree / count, "kl_to_teacher": divergence / count}
        if labelled:
            bins = self._sums[6:].view(2, 3, BINS)
            figures |= {"student_nll": student / labelled, "teacher_nll": teacher / labelled}
            for who, sums in zip(("student", "teacher"), bins, strict=True):
                figures[f"{who}_ece"] = float(_gap(sums) / labelled)
        return figures


def _bins(probabilities: Tensor, labels: Tensor) -> Tensor:
    """For each bin of sureness: samples, sum of sureness, number of right ones; (3, BINS)."""
    sure, guess = probabilities.double().max(dim=1)
    places = (sure * BINS).long().clamp(0, BINS - 1)
    values = torch.stack([torch.ones_like(sure), sure, (guess == labels).double()])
    return torch.zeros(3, BINS, dtype=torch.float64, device=sure.device).index_add_(1, places, values)


def _gap(bins: Tensor) -> Tensor:
    return (bins[1] - bins[2]).abs().sum()

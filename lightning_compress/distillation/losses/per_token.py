"""Soft targets at every token of a sequence."""

from torch import Tensor

from lightning_compress.distillation.losses.kd import kd
from lightning_compress.distillation.precision import full_precision, reads


@reads("tokens")
@full_precision
def per_token(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    labels: Tensor | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Soft targets over the vocabulary at each token, averaged over the tokens that count.

    Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv:1606.07947 (word level).

    Args:
        student: logits (N, length, vocabulary).
        teacher: logits of the same shape.
        temperature: T, above 0.
        labels: (N, length); tokens labelled ``ignore_index`` do not count. None: all count.
        ignore_index: marks padding.

    >>> import torch
    >>> logits = torch.zeros(1, 2, 3), torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    >>> per_token(*logits, 1.0, torch.tensor([[1, -100]])).item()
    0.0
    """
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    if labels is not None and labels.numel() == len(student):
        counts = labels.flatten() != ignore_index
        student, teacher = student[counts], teacher[counts]
    return kd(student, teacher, temperature) if len(student) else student.sum()

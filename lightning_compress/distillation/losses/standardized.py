"""Soft targets of standardised logits."""

from torch import Tensor

from lightning_compress.distillation.losses.kd import kd
from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def standardized(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Soft targets after each sample's logits are brought to mean 0 and deviation 1: a small network need not reach
    the teacher's magnitude.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0; the paper's base temperature is 2.

    >>> import torch
    >>> round(standardized(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[6.0, 2.0, 4.0]])).item(), 6)
    0.0
    """
    return kd(_standard(student), _standard(teacher), temperature)


def _standard(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-7)

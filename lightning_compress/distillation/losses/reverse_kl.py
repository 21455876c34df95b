"""Soft targets the other way round."""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(student || teacher): the student seeks the teacher's main modes instead of covering all of them.

    Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv:2306.08543.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0.

    >>> import torch
    >>> reverse_kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]])).item()
    0.0
    """
    expected = log_softmax(teacher / temperature, dim=-1)
    found = log_softmax(student / temperature, dim=-1)
    return kl_div(expected, found, reduction="batchmean", log_target=True) * temperature**2

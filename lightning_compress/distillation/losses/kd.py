"""Soft targets."""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 times the divergence KL(teacher || student) of the softened distributions.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531. The factor T^2
    keeps the gradients' size; for large T and centred logits the loss tends to :func:`logit_mse`.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0.

    >>> import torch
    >>> kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]])).item()
    0.0
    """
    expected = log_softmax(teacher / temperature, dim=-1)
    found = log_softmax(student / temperature, dim=-1)
    return kl_div(found, expected, reduction="sum", log_target=True) * (temperature**2 / max(len(student), 1))

"""Soft targets for labels that do not exclude each other."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_compress.distillation.precision import full_precision, reads


@reads("labels")
@full_precision
def sigmoid_kd(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 times the divergence of each label's softened yes and no, summed over labels: multi-label and binary outputs.

    Hinton et al. 2015 with the sigmoid in the softmax's place; zero where both agree, unlike binary cross-entropy.

    Args:
        student: logits (N, labels), or (N,) for a binary output.
        teacher: logits of the same shape.
        temperature: T, above 0.

    >>> import torch
    >>> sigmoid_kd(torch.tensor([[2.0, -1.0]]), torch.tensor([[2.0, -1.0]])).item()
    0.0
    """
    found, expected = student / temperature, teacher / temperature
    chance = expected.sigmoid()
    yes = chance * (logsigmoid(expected) - logsigmoid(found))
    no = (1 - chance) * (logsigmoid(-expected) - logsigmoid(-found))
    return (yes + no).flatten(1 if student.dim() > 1 else 0).sum() / len(student) * temperature**2

"""Matching logits."""

from torch import Tensor

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of the logits, averaged over classes: the limit of soft targets at high temperature.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184; the scale is that of
    Hinton et al. 2015, section 2.1: the gradient is (student - teacher) / C.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).

    >>> import torch
    >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
    0.5
    """
    return (student - teacher).square().mean(dim=-1).mean() / 2

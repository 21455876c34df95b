"""Relations between classes and between samples."""

from torch import Tensor
from torch.nn.functional import cosine_similarity, softmax

from lightning_compress.distillation.precision import full_precision, reads


@reads("classes")
@full_precision
def dist(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, *, between: float = 1.0, within: float = 1.0
) -> Tensor:
    """One minus the correlation of the softened predictions, over classes and over the batch.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536. A correlation does
    not shrink with the temperature, so there is no factor T^2.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T, above 0.
        between: weight of the relations between the classes of a sample.
        within: weight of the relations between the samples of a class.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    >>> round(abs(dist(logits, logits).item()), 6)
    0.0
    """
    found, expected = softmax(student / temperature, dim=-1), softmax(teacher / temperature, dim=-1)
    return between * _distance(found, expected) + within * _distance(found.T, expected.T)


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    """One minus Pearson's correlation of corresponding rows, averaged."""
    found, expected = (rows - rows.mean(dim=1, keepdim=True) for rows in (found, expected))
    return 1 - cosine_similarity(found, expected, dim=1, eps=1e-8).mean()

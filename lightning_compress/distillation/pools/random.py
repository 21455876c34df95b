"""One member at a time."""

from torch import Tensor


def random(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The one member that was drawn for this step (the others are not even run).

    Which one depends on the step alone, drawn with the members' weights, so that a resumed fit draws the same.

    >>> import torch
    >>> random(torch.tensor([[[2.0, 0.0]]]), torch.ones(1), 4.0).tolist()
    [[2.0, 0.0]]
    """
    return logits[0]

"""One ranking of each score against all larger ones of its tensor."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_compress.pruning.allocations.global_ import global_
from lightning_compress.pruning.criteria.lamp import remaining_share
from lightning_compress.pruning.weights import Scores


def lamp(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Global, after each squared score was divided by the sum of those in its tensor that are not smaller.

    Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611. With the magnitude
    criterion that is LAMP itself. No tensor gives all before all others have one entry left.

    >>> lamp({"a": torch.tensor([0.1, 0.1]), "b": torch.tensor([2.0, 3.0])}, 2)
    {'a': 1, 'b': 1}
    """

    def shares(name: str) -> Tensor:
        score = scores[name]
        finite = score.isfinite()
        lowest = score[finite].min().clamp(max=0) if bool(finite.any()) else 0.0
        return torch.where(finite, remaining_share(torch.where(finite, score - lowest, 0.0).square()), score)

    return global_(Scores(scores, shares), drop)

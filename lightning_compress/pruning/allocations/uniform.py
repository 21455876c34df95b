"""The same share everywhere."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_compress.pruning.allocations.global_ import global_


def uniform(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Each tensor gives the same share, to the nearest entry.

    Rounded as seats are (Webster's method): unlike with largest remainders, no tensor gives less when ``drop`` grows.

    >>> uniform({"a": torch.zeros(6), "b": torch.zeros(3)}, 4)
    {'a': 3, 'b': 1}
    """
    ranks = {name: torch.arange(0.5, score.numel(), dtype=torch.float64) for name, score in scores.items()}
    return global_({name: rank / rank.numel() for name, rank in ranks.items()}, drop)

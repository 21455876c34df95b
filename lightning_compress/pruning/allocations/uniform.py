"""The same share everywhere."""

from collections.abc import Mapping

from torch import Tensor


def uniform(scores: Mapping[str, Tensor], drop: int) -> dict[str, int]:
    """Each tensor gives the same share; what rounding leaves over comes from those with the largest remainders.

    >>> import torch
    >>> uniform({"a": torch.zeros(6), "b": torch.zeros(3)}, 4)
    {'a': 3, 'b': 1}
    """
    total = sum(tensor.numel() for tensor in scores.values())
    exact = {name: drop * tensor.numel() / total for name, tensor in scores.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(counts, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: drop - sum(counts.values())]:
        counts[name] += 1
    return counts

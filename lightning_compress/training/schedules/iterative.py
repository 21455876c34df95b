"""Prune, fine-tune, again."""


def iterative(progress: float, final: float) -> float:
    """Rounds that each take the same share of what is left, with fine-tuning between (Han et al. 2015,
    arXiv:1506.02626).

    Without ``rounds`` in the :class:`~lightning_compress.training.Schedule`, as few rounds as ``max_step`` allows.

    >>> [round(iterative(k / 2, 0.75), 6) for k in (1, 2)]
    [0.5, 0.75]
    """
    return float(1 - (1 - final) ** progress)

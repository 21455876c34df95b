"""Fast at first, gently at the end."""


def cubic(progress: float, final: float) -> float:
    """Much while there is redundancy, little at the end (Zhu and Gupta 2017, "To prune, or not to prune",
    arXiv:1710.01878).

    >>> round(cubic(0.5, 0.8), 6)
    0.7
    """
    return final * (1 - (1 - progress) ** 3)

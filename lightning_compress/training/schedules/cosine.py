"""Slow, fast, slow."""

from math import cos, pi


def cosine(progress: float, final: float) -> float:
    """Half a cosine: gently in, gently out.

    >>> round(cosine(0.5, 0.8), 6)
    0.4
    """
    return final * (1 - cos(pi * progress)) / 2

"""Equal steps."""


def linear(progress: float, final: float) -> float:
    """The same amount each time.

    >>> linear(0.5, 0.8)
    0.4
    """
    return final * progress

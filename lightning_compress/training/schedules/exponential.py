"""Equal shares of what is left."""


def exponential(progress: float, final: float) -> float:
    """The same share of what is left each time.

    >>> round(exponential(0.5, 0.75), 6)
    0.5
    """
    return float(1 - (1 - final) ** progress)

"""The errors of the package; each names the layer, the value and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class CompressionError(Exception):
    """Something asked of this package cannot be done right; nothing has been changed."""


class PlanError(CompressionError):
    """A Plan does not fit the module, or what was read from a file is not a valid Plan."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, and all that exist.

    >>> did_you_mean("magnitud", ["magnitude", "apoz"])
    "Did you mean 'magnitude'? Known: apoz, magnitude."
    """
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(names) or 'none'}."

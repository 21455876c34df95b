"""What the bits of all weights together may come to, to be shared out among the layers when rounding begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.grid import check_bits
from lightning_compress.values import is_number, is_whole


@dataclass(frozen=True)
class BitBudget:
    """In the place of ``weight_bits``: each layer gets the bits that the whole network's outputs suffer least from.

    When rounding begins, :func:`~lightning_compress.quantization.sensitivity` is measured on training samples, and
    :func:`~lightning_compress.quantization.allocate_bits` shares the budget out. Begin with a trained network, or late
    (``start``): an untrained one says nothing.

    Attributes:
        mean_bits: budget in bits a weight.
        size: or budget in bytes of all weights.
        bits: to choose from, each 2 to 8.
        samples: of the training data.

    Raises:
        CompressionError: not exactly one budget, or a value out of range.

    >>> BitBudget(mean_bits=3).most
    8
    """

    mean_bits: float | None = None
    size: float | None = None
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8)
    samples: int = 256

    def __post_init__(self) -> None:
        if (self.mean_bits is None) == (self.size is None):
            raise CompressionError("Give one budget: mean_bits= or size= (bytes).")
        given = self.size if self.mean_bits is None else self.mean_bits
        if not is_number(given) or not given > 0:
            raise CompressionError(f"The budget {given!r} is no number above 0: bits a weight, or bytes of them all.")
        several: object = self.bits
        if not isinstance(several, Sequence) or isinstance(several, str) or not several:
            raise CompressionError(f"bits={several!r}: give several to choose from, such as (2, 4, 8).")
        object.__setattr__(self, "bits", tuple(check_bits(one) for one in several))
        if not is_whole(self.samples) or self.samples < 1:
            raise CompressionError(f"samples={self.samples!r} is not a whole number of at least 1.")

    @property
    def most(self) -> int:
        """The most bits that a layer may get."""
        return max(self.bits)

"""A stream: symbols of a known number and alphabet, grouped where that pays, coded, with a header of two fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.entropy import Coder, CoderName, decode_symbols, encode_symbols, foretold_bytes
from lightning_compress.artifact.fields import Data, FieldReader, FieldWriter
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.huffman import read_lengths
from lightning_compress.artifact.rans import read_model

Symbols = NDArray[np.uint8]
LARGE = 2**17
"""From so many entries on, one form is chosen by its histogram; of fewer, all are coded and the smallest is kept."""


@dataclass(frozen=True)
class Stream:
    """Coded symbols.

    Attributes:
        coder: who coded them.
        grouped: several symbols of a small alphabet make one, so that no codeword wastes the rest of its last bit.
        data: the bytes.
    """

    coder: Coder
    grouped: bool
    data: Data

    @property
    def table(self) -> int:
        """Bytes of the table of frequencies, 0 where it cannot be told apart (DEFLATE)."""
        if self.coder is Coder.HUFFMAN:
            return read_lengths(self.data)[1]
        return read_model(self.data)[1] if self.coder is Coder.RANS else 0

    @classmethod
    def encode(cls, symbols: Symbols, alphabet: int, coder: CoderName) -> Stream:
        """The smallest stream of ``symbols``, all below ``alphabet``.

        >>> Stream.encode(np.array([0, 1, 1, 0, 1, 0, 0, 1], np.uint8), 2, "auto").data
        b'i'
        """
        forms = {False: symbols}
        if _per_group(alphabet) > 1:
            forms[True] = _group(symbols, alphabet)
            if len(symbols) >= LARGE:
                best = min(forms, key=lambda grouped: foretold_bytes(forms[grouped], coder))
                forms = {best: forms[best]}
        streams = [cls(*_reorder(encode_symbols(form, coder), grouped)) for grouped, form in forms.items()]
        return min(streams, key=lambda stream: len(stream.data))

    def decode(self, count: int, alphabet: int) -> Symbols:
        """The ``count`` symbols.

        Raises:
            FormatError: other symbols than that are in it.
        """
        per = _per_group(alphabet) if self.grouped else 1
        coded = decode_symbols(self.coder, self.data, -(-count // per))
        symbols = _ungroup(coded, alphabet, per)
        if symbols[count:].any():
            raise FormatError("A stream has symbols too many.")
        symbols = symbols[:count]
        if alphabet < 256 and symbols.max(initial=0) >= alphabet:
            raise FormatError(f"A stream has the symbol {symbols.max()}; {alphabet} are known.")
        return symbols

    def write(self, writer: FieldWriter) -> None:
        """Coder and grouping in one number with the length, then the bytes."""
        writer.number((len(self.data) << 3) | (self.grouped << 2) | self.coder)
        writer.data += self.data

    @classmethod
    def read(cls, reader: FieldReader) -> Stream:
        """What :meth:`write` wrote."""
        head = reader.number(8 * reader.left + 7)
        return cls(Coder(head & 3), bool(head & 4), reader.take(head >> 3))


def _reorder(coded: tuple[Coder, bytes], grouped: bool) -> tuple[Coder, bool, bytes]:
    return coded[0], grouped, coded[1]


def _per_group(alphabet: int) -> int:
    """The most symbols that fit into a byte."""
    per = 1
    while alphabet > 1 and alphabet ** (per + 1) <= 256:
        per += 1
    return per


def _group(symbols: Symbols, alphabet: int) -> Symbols:
    per = _per_group(alphabet)
    padded = np.zeros(-(-len(symbols) // per) * per, np.uint8)
    padded[: len(symbols)] = symbols
    grouped = np.zeros(len(padded) // per, np.uint8)
    for place in range(per):
        grouped = grouped * np.uint8(alphabet % 256) + padded[place::per]
    return grouped


def _ungroup(grouped: Symbols, alphabet: int, per: int) -> Symbols:
    if per == 1:
        return grouped
    if grouped.max(initial=0) >= alphabet**per:
        raise FormatError(f"A stream has the symbol {grouped.max()}; {alphabet**per} are known.")
    symbols = np.empty((len(grouped), per), np.uint8)
    for place in reversed(range(per)):
        grouped, symbols[:, place] = np.divmod(grouped, np.uint8(alphabet))
    return symbols.reshape(-1)

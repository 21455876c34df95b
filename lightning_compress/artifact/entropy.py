"""Symbols to bytes and back: the closed set of entropy coders behind one pair of functions."""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.fields import Data
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.huffman import huffman_bits, huffman_decode, huffman_encode
from lightning_compress.artifact.rans import rans_bits, rans_decode, rans_encode

CoderName: TypeAlias = Literal["auto", "smallest", "deflate", "huffman", "rans"]
SHORT = 2**10
"""Of fewer symbols, DEFLATE's tables weigh more than its speed."""


class Coder(IntEnum):
    """How a stream is coded; the numbers are part of the format, and a file can name no other.

    RAW are the symbols themselves. DEFLATE is the standard library's, in its Huffman-only mode: dynamic Huffman codes,
    made anew every 32 K symbols, decoded in C. HUFFMAN is our own canonical code, one table a stream. RANS is our own
    range coder, which wastes no fractions of bits.
    """

    RAW = 0
    DEFLATE = 1
    HUFFMAN = 2
    RANS = 3


_ALLOWED: dict[str, tuple[Coder, ...]] = {
    "auto": (Coder.DEFLATE, Coder.HUFFMAN, Coder.RANS),
    "smallest": (Coder.DEFLATE, Coder.HUFFMAN, Coder.RANS),
    "deflate": (Coder.DEFLATE, Coder.HUFFMAN),
    "huffman": (Coder.HUFFMAN,),
    "rans": (Coder.RANS,),
}
CODERS = tuple(_ALLOWED)


def allowed_coders(name: CoderName, count: int) -> tuple[Coder, ...]:
    """Who may code ``count`` symbols.

    >>> allowed_coders("deflate", 2**20)
    (<Coder.DEFLATE: 1>,)
    """
    if name == "deflate" and count >= SHORT:
        return (Coder.DEFLATE,)
    return _ALLOWED[name]


def encode_symbols(symbols: NDArray[np.uint8], name: CoderName = "auto") -> tuple[Coder, bytes]:
    """The smallest of what the coders behind ``name`` make of ``symbols``.

    Args:
        symbols: shape (n,).
        name: "huffman", "rans", "deflate" (short streams are Huffman's where that is smaller), "smallest" or "auto" for
            the best one; what no code makes smaller stays raw.

    >>> coder, data = encode_symbols(np.array([1, 1, 2, 1, 1, 1, 3, 1], np.uint8), "huffman")
    >>> coder.name, len(data)
    ('HUFFMAN', 6)
    """
    if not len(symbols):
        return Coder.RAW, b""
    allowed = allowed_coders(name, len(symbols))
    deflated = _deflate_symbols(symbols) if Coder.DEFLATE in allowed else b""
    best = allowed[0]
    if len(allowed) > 1:
        counts = np.bincount(symbols, minlength=256)
        size = {coder: len(deflated) if coder is Coder.DEFLATE else _foretold(coder, counts) for coder in allowed}
        best = min(size, key=lambda coder: (size[coder], coder))
    data = deflated if best is Coder.DEFLATE else _ENCODERS[best](symbols)
    return (best, data) if len(data) < len(symbols) else (Coder.RAW, symbols.tobytes())


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """The entropy of symbols that occur ``counts`` times.

    >>> entropy_bits(np.array([4, 0, 4]))
    8.0
    """
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def foretold_bytes(symbols: NDArray[np.uint8], name: CoderName) -> float:
    """About the size of what :func:`encode_symbols` makes of them, at a fraction of its time.

    >>> foretold_bytes(np.zeros(1000, np.uint8), "deflate") < 10
    True
    """
    counts = np.bincount(symbols, minlength=256)
    return min(_foretold(coder, counts) for coder in allowed_coders(name, len(symbols)))


def decode_symbols(coder: Coder, data: Data, count: int) -> NDArray[np.uint8]:
    """Exactly ``count`` symbols; never more memory than they take.

    Raises:
        FormatError: ``data`` are not exactly that.

    >>> decode_symbols(*encode_symbols(np.arange(9, dtype=np.uint8)), 9).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    if coder is Coder.HUFFMAN:
        return huffman_decode(data, count)
    if coder is Coder.RANS:
        return rans_decode(data, count)
    raw = data if coder is Coder.RAW else inflate(data, count)
    if len(raw) != count:
        raise FormatError(f"A stream has {len(raw)} symbols instead of {count}.")
    return np.frombuffer(raw, np.uint8)


def deflate(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY, words: bytes = b"") -> bytes:
    """A raw DEFLATE stream, which may refer to ``words``; the settings are fixed, for equal input gives equal files."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy, words)
    return coder.compress(data) + coder.flush()


def inflate(data: Data, size: int, words: bytes = b"") -> bytes:
    """The ``size`` bytes in a raw DEFLATE stream; a stream that would swell to more is stopped.

    A stream that was written without ``words`` is read with them too: it refers to none.

    Raises:
        FormatError: no DEFLATE, not its end, bytes behind it, or another size.

    >>> inflate(deflate(b"abc"), 3)
    b'abc'
    """
    decoder = zlib.decompressobj(-15, words)
    try:
        raw = decoder.decompress(data, size + 1)  # one more than expected, so that the end itself is reached
    except zlib.error as error:
        raise FormatError(f"A stream is no DEFLATE: {error}.") from None
    if len(raw) != size or not decoder.eof or decoder.unused_data:
        raise FormatError(f"A DEFLATE stream is not exactly {size} bytes.")
    return raw


def _deflate_symbols(symbols: NDArray[np.uint8]) -> bytes:
    return deflate(symbols.tobytes(), zlib.Z_HUFFMAN_ONLY)


def _foretold(coder: Coder, counts: NDArray[np.int64]) -> float:
    """About the bytes of symbols that occur ``counts`` times, DEFLATE's own adaptation aside."""
    return (rans_bits(counts) if coder is Coder.RANS else huffman_bits(counts)) / 8


_ENCODERS = {Coder.HUFFMAN: huffman_encode, Coder.RANS: rans_encode}

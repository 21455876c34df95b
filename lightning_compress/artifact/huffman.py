"""Canonical Huffman codes, from counts to bits and back, in numpy.

A Huffman code gives frequent symbols short codewords, and no codeword is the beginning of another one, so a sequence
of codewords needs no separators. It is *canonical* if codewords of one length are consecutive numbers in the order of
their symbols: then the lengths alone say what the code is, and only they have to be stored.

Huffman, "A Method for the Construction of Minimum-Redundancy Codes", 1952; Schwartz and Kallick, "Generating a
Canonical Prefix Encoding", 1964; for bounded lengths Larmore and Hirschberg, "A Fast Algorithm for Optimal
Length-Limited Huffman Codes", 1990.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_compress.artifact.fields import Data
from lightning_compress.artifact.format_error import FormatError

LIMIT = 15
"""Longest codeword in bits: a table of 2**15 entries then decodes any of them in one look."""

FIRST_LENGTH = 3
SHORT, SHORT_BLOCK, BLOCK = 2**12, 32, 128
"""Bits that are decoded side by side with all others; fewer in streams of few bytes, where there are lanes to spare."""

Bytes = NDArray[np.uint8]


def code_lengths(counts: NDArray[np.int64], limit: int = LIMIT) -> Bytes:
    """Lengths of the best codewords of at most ``limit`` bits; 0 for symbols that do not occur.

    Package-merge: a symbol with a codeword of l bits costs its count once for each of l levels. Level by level the
    cheapest items are paired into packages that compete with the single symbols of the level above.

    Args:
        counts: how often each symbol occurs, at most 2**limit of them.
        limit: longest codeword.

    >>> code_lengths(np.array([50, 0, 25, 25])).tolist()
    [1, 0, 2, 2]
    """
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    leaves = counts[order].astype(np.int64)
    levels = []
    packages = np.zeros(0, np.int64)
    for _ in range(limit):
        items = np.concatenate([leaves, packages])
        ranking = np.argsort(items, kind="stable")
        levels.append(ranking < len(leaves))
        ranked = items[ranking[: len(items) // 2 * 2]]
        packages = ranked[0::2] + ranked[1::2]
    taken = 2 * len(leaves) - 2
    for is_leaf in reversed(levels):
        chosen = int(is_leaf[:taken].sum())
        lengths[order[:chosen]] += 1
        taken = 2 * (taken - chosen)
    return lengths


def canonical_codes(lengths: Bytes) -> NDArray[np.uint32]:
    """The codewords that belong to ``lengths``, as numbers; shorter ones first, then by symbol.

    >>> [f"{code:0{length}b}" for code, length in zip(canonical_codes(np.array([1, 2, 2], np.uint8)), [1, 2, 2])]
    ['0', '10', '11']
    """
    codes = np.zeros(len(lengths), np.uint32)
    code = 0
    for length in range(1, int(lengths.max(initial=0)) + 1):
        symbols = np.flatnonzero(lengths == length)
        codes[symbols] = code + np.arange(len(symbols))
        code = (code + len(symbols)) << 1
    return codes


def huffman_bits(counts: NDArray[np.int64]) -> int:
    """Size in bits of symbols that occur ``counts`` times, table included.

    >>> huffman_bits(np.array([50, 0, 25, 25]))
    182
    """
    lengths = code_lengths(counts)
    coded = int((counts * lengths).sum()) if np.count_nonzero(lengths) > 1 else 0
    return coded + 8 * len(write_lengths(lengths))


def huffman_encode(symbols: Bytes) -> bytes:
    """The code's lengths, then the codewords; zeros fill the last byte up.

    Args:
        symbols: shape (n,), n >= 1.

    >>> huffman_decode(huffman_encode(np.frombuffer(b"abracadabra", np.uint8)), 11).tobytes()
    b'abracadabra'
    """
    lengths = code_lengths(np.bincount(symbols, minlength=1).astype(np.int64))
    table = write_lengths(lengths)
    if np.count_nonzero(lengths) == 1:
        return table
    length = lengths[symbols]
    code = canonical_codes(lengths)[symbols]
    start = np.cumsum(length, dtype=np.int64)
    total = int(start[-1])
    start -= length
    bits = np.zeros(total, np.bool_)
    for place in range(int(length.max())):
        long_enough = np.flatnonzero(length > place)
        shift = length[long_enough] - 1 - place
        bits[start[long_enough] + place] = (code[long_enough] >> shift) & 1
    return table + np.packbits(bits).tobytes()


def huffman_decode(data: Data, count: int) -> Bytes:
    """``count`` symbols, all at once: every block of the stream is decoded from every bit at which it could begin.

    Where a codeword begins is known only when all before it are decoded. But a block of them can begin at no more
    places than the longest codeword has bits: follow them all, side by side, and see where each leaves the block; then
    walk from block to block along what was found, and decode the blocks for good, side by side again.

    Raises:
        FormatError: the table is no complete code, or the data are not exactly ``count`` codewords.

    >>> huffman_decode(huffman_encode(np.zeros(5, np.uint8)), 5).tolist()
    [0, 0, 0, 0, 0]
    """
    lengths, size = read_lengths(data)
    payload = np.frombuffer(data, np.uint8)[size:]
    used = np.flatnonzero(lengths)
    if len(used) == 1 and lengths[used[0]] == 1:
        if len(payload):
            raise FormatError("A Huffman stream of one symbol has bits.")
        return np.full(count, used[0], np.uint8)
    if int((1 << (LIMIT - lengths[used].astype(np.int64))).sum()) != 1 << LIMIT or len(used) == 0:
        raise FormatError("The codewords of a Huffman table are no complete code.")
    if count > 8 * len(payload):
        raise FormatError(f"{len(payload)} bytes of Huffman code cannot be {count} symbols.")
    symbols, end = _decode_blocks(payload, lengths, count)
    if not 0 <= 8 * len(payload) - end < 8 or (end % 8 and int(payload[-1]) & (255 >> (end % 8))):
        raise FormatError("A Huffman stream does not end where its last symbol does.")
    return symbols


def _decode_blocks(payload: Bytes, lengths: Bytes, count: int) -> tuple[Bytes, int]:
    """``count`` symbols of a complete code, and the bit behind the last one; 0 where there are not as many."""
    lookup_symbol, lookup_length = _lookup(lengths)
    longest = int(lengths.max())
    size = SHORT_BLOCK if len(payload) < SHORT else BLOCK
    blocks = -(-8 * len(payload) // size)
    padded = np.zeros(blocks * size // 8 + 8, np.uint32)
    padded[: len(payload)] = payload
    words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # 24 bits from each byte on: any 15 from any bit on

    def peek(at: NDArray[np.int64]) -> NDArray[np.uint32]:
        window: NDArray[np.uint32] = (words[at >> 3] >> (9 - (at & 7)).astype(np.uint32)) & 0x7FFF
        return window

    ends = np.arange(1, blocks + 1, dtype=np.int64)[:, None] * size
    at = (ends - size + np.arange(longest)).ravel()
    limit, found = np.repeat(ends.ravel(), longest), np.zeros(len(at), np.int64)
    active = np.arange(len(at))
    while len(active):
        at[active] += lookup_length[peek(at[active])]
        found[active] += 1
        active = active[at[active] < limit[active]]
    leaves = (at - limit).reshape(blocks, longest)
    entry, offset = np.zeros(blocks, np.int64), 0
    for block, row in enumerate(leaves.tolist()):
        entry[block], offset = offset, row[offset]
    number = found.reshape(blocks, longest)[np.arange(blocks), entry]
    if int(number.sum()) < count:
        return np.zeros(0, np.uint8), 0
    symbols, index = np.zeros(count, np.uint8), np.cumsum(number) - number
    at, limit = ends.ravel() - size + entry, ends.ravel()
    end, active = 0, np.flatnonzero(index < count)
    while len(active):
        window, place = peek(at[active]), index[active]
        symbols[place] = lookup_symbol[window]
        at[active] += lookup_length[window]
        last = active[place == count - 1]
        end = int(at[last[0]]) if len(last) else end
        index[active] += 1
        active = active[(at[active] < limit[active]) & (index[active] < count)]
    return symbols, end


def _lookup(lengths: Bytes) -> tuple[Bytes, NDArray[np.int64]]:
    """For each 15 bits the symbol whose codeword they begin with, and its length."""
    symbols = np.lexsort((np.arange(len(lengths)), lengths))
    symbols = symbols[lengths[symbols] > 0]
    times = 1 << (LIMIT - lengths[symbols].astype(np.int64))
    return np.repeat(symbols, times).astype(np.uint8), np.repeat(lengths[symbols].astype(np.int64), times)


def write_lengths(lengths: Bytes) -> bytes:
    """The table: the number of symbols less one, then each length by its difference from the one before.

    0 for the same, 10 for one more, 110 for one less, 111 and four bits for any: neighbours are alike. Four zero bits
    begin a run of symbols that do not occur; how many they are follows in Elias' gamma code.

    >>> write_lengths(np.array([1, 2, 3, 3], np.uint8)).hex()
    '03e340'
    """
    size = int(np.flatnonzero(lengths)[-1]) + 1
    before, run, text = FIRST_LENGTH, 0, ""
    for length in lengths[:size].tolist():
        if not length:
            run += 1
            continue
        if run:
            text += f"1110000{run:0{2 * run.bit_length() - 1}b}"
        text += {0: "0", 1: "10", -1: "110"}.get(length - before, f"111{length:04b}")
        before, run = length, 0
    return bytes([size - 1]) + np.packbits(np.array(list(text), np.uint8)).tobytes()


def read_lengths(data: Data) -> tuple[Bytes, int]:
    """What :func:`write_lengths` wrote at the beginning of ``data``, and its size in bytes.

    Raises:
        FormatError: the table does not end.
    """
    if not data:
        raise FormatError("A Huffman stream has no table.")
    text = "".join(f"{byte:08b}" for byte in data[1 : 1 + 7 * 256 // 8])
    at, before, size = 0, FIRST_LENGTH, data[0] + 1
    lengths: list[int] = []
    while len(lengths) < size:
        ones = next((n for n, bit in enumerate(text[at : at + 3]) if bit == "0"), 3)
        at += min(ones + 1, 3)
        length = before + (0, 1, -1)[ones] if ones < 3 else int(text[at : at + 4].ljust(4, "0"), 2)
        at += 4 * (ones == 3)
        if ones == 3 and length == 0:
            digits = len(text[at:]) - len(text[at:].lstrip("0")) + 1
            lengths += [0] * min(int(text[at : at + 2 * digits - 1] or "0", 2), size)
            at += 2 * digits - 1
        else:
            lengths.append(length)
            before = length
        if at > len(text) or not 0 < before <= LIMIT:
            raise FormatError("A Huffman table is cut off, or has codewords that are too long.")
    used = -(-at // 8)
    if len(lengths) > size or "1" in text[at : 8 * used] or not lengths[-1]:
        raise FormatError("A Huffman table is not in its shortest form.")
    return np.array(lengths, np.uint8), 1 + used

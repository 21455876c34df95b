"""Symbols through every coder, and back through decoders that share no line with them."""

import zlib

import numpy as np
import pytest
from artifact import reference

from lightning_compress.artifact.entropy import CODERS, Coder, decode_symbols, deflate, encode_symbols, inflate
from lightning_compress.artifact.format_error import FormatError
from lightning_compress.artifact.huffman import (
    LIMIT,
    canonical_codes,
    code_lengths,
    huffman_bits,
    huffman_decode,
    huffman_encode,
    read_lengths,
)
from lightning_compress.artifact.rans import TOTAL, best_model, rans_bits, rans_decode, rans_encode
from lightning_compress.artifact.streams import Stream


def sequences():
    rng = np.random.default_rng(0)
    yield "one symbol", np.zeros(1, np.uint8)
    yield "one value", np.full(999, 7, np.uint8)
    yield "two values", rng.integers(0, 2, 5000).astype(np.uint8)
    yield "uniform", rng.integers(0, 256, 3000).astype(np.uint8)
    yield "geometric", np.minimum(rng.geometric(0.1, 20000) - 1, 255).astype(np.uint8)
    yield "very skewed", np.minimum(rng.geometric(0.7, 20000) - 1, 255).astype(np.uint8)
    yield "fibonacci", np.repeat(np.arange(25, dtype=np.uint8), [max(1, round(1.5**i)) for i in range(25)])


SEQUENCES = dict(sequences())


@pytest.mark.parametrize("name", SEQUENCES)
def test_huffman_gives_back_what_it_got(name):
    symbols = SEQUENCES[name]
    assert np.array_equal(huffman_decode(huffman_encode(symbols), len(symbols)), symbols)


@pytest.mark.parametrize("name", sorted(set(SEQUENCES) - {"one symbol", "one value"}))
def test_huffman_agrees_with_a_decoder_that_goes_bit_by_bit(name):
    symbols = SEQUENCES[name]
    data = huffman_encode(symbols)
    lengths, size = read_lengths(data)
    assert reference.huffman(lengths.tolist(), data[size:], len(symbols)) == symbols.tobytes()


@pytest.mark.parametrize("name", SEQUENCES)
def test_deflate_agrees_with_a_decoder_that_goes_bit_by_bit(name):
    data = deflate(SEQUENCES[name].tobytes(), zlib.Z_HUFFMAN_ONLY)
    assert reference.inflate(data) == SEQUENCES[name].tobytes() == inflate(data, len(SEQUENCES[name]))


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_no_coder_makes_symbols_longer(name, coder):
    kind, data = encode_symbols(SEQUENCES[name], coder)
    assert len(data) <= len(SEQUENCES[name])
    assert np.array_equal(decode_symbols(kind, data, len(SEQUENCES[name])), SEQUENCES[name])


def test_lengths_are_those_of_huffmans_own_algorithm():
    import heapq

    counts = np.random.default_rng(1).integers(1, 1000, 60)
    heap, total = list(map(int, counts)), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    assert int((code_lengths(counts) * counts).sum()) == total


def test_lengths_keep_their_limit_and_waste_no_codeword():
    counts = np.array([2**i for i in range(30)])
    for limit in (5, 8, LIMIT):
        lengths = code_lengths(counts, limit)
        assert lengths.max() <= limit
        assert sum(2.0 ** -int(length) for length in lengths) == 1


def test_no_codeword_begins_another_one():
    lengths = code_lengths(np.random.default_rng(2).integers(1, 100, 40))
    words = [f"{code:0{n}b}" for code, n in zip(canonical_codes(lengths), lengths, strict=True)]
    assert not [a for a in words for b in words if a is not b and b.startswith(a)]


def test_huffman_bits_is_the_size_that_comes_out():
    symbols = SEQUENCES["geometric"]
    assert -(-huffman_bits(np.bincount(symbols)) // 8) == len(huffman_encode(symbols))


def entropy(symbols):
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(symbols) / counts)).sum())


LONG_SEQUENCES = {
    "long gaps": np.minimum(np.random.default_rng(3).geometric(0.03, 100_000) - 1, 255).astype(np.uint8),
    "long levels": np.random.default_rng(4).binomial(31, 0.5, 40_001).astype(np.uint8),
}


@pytest.mark.parametrize("name", [*SEQUENCES, *LONG_SEQUENCES])
def test_the_range_coder_gives_back_what_it_got(name):
    symbols = {**SEQUENCES, **LONG_SEQUENCES}[name]
    assert np.array_equal(rans_decode(rans_encode(symbols), len(symbols)), symbols)


@pytest.mark.parametrize("name", [*SEQUENCES, *LONG_SEQUENCES])
def test_the_range_coder_agrees_with_a_decoder_that_goes_symbol_by_symbol(name):
    symbols = {**SEQUENCES, **LONG_SEQUENCES}[name]
    data, model = rans_encode(symbols), best_model(np.bincount(symbols, minlength=256))
    assert model.frequencies.sum() == TOTAL
    form, start = data[0] >> 3, 1 + len(model.table)
    if form < 4:
        stop = start + form + 1
        states = [int.from_bytes(data[start:stop], "little")]
    else:
        stop = start + (8 << form)
        states = np.frombuffer(data[start:stop], "<u4").tolist()
    words = np.frombuffer(data[stop:], "<u2").tolist()
    # all states are read in turn, a step at a time; a step's words come in the order of its states
    assert reference.rans(model.frequencies.tolist(), states, words, len(symbols)) == symbols.tobytes()


@pytest.mark.parametrize("name", ["long gaps", "long levels"])
def test_the_range_coder_is_within_a_hundredth_of_the_entropy(name):
    symbols = LONG_SEQUENCES[name]
    assert 8 * len(rans_encode(symbols)) <= 1.01 * entropy(symbols)


@pytest.mark.parametrize("name", [*SEQUENCES, *LONG_SEQUENCES])
def test_the_size_foretold_for_the_range_coder_is_about_what_comes_out(name):
    symbols = {**SEQUENCES, **LONG_SEQUENCES}[name]
    foretold = rans_bits(np.bincount(symbols, minlength=256))
    assert abs(foretold / 8 - len(rans_encode(symbols))) <= 4 + 0.002 * len(symbols)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 40])
def test_the_range_coder_refuses_a_stream_that_is_cut_off(length):
    with pytest.raises(FormatError):
        rans_decode(rans_encode(SEQUENCES["geometric"])[:-length], len(SEQUENCES["geometric"]))


@pytest.mark.parametrize(
    ("name", "more"), [("geometric", -1), ("long gaps", -1), ("long gaps", 1), ("long gaps", 500), ("long levels", 1)]
)
def test_the_range_coder_refuses_another_number_of_symbols(name, more):
    symbols = {**SEQUENCES, **LONG_SEQUENCES}[name]
    with pytest.raises(FormatError):
        rans_decode(rans_encode(symbols), len(symbols) + more)


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 300, b"\x01\xe0\x00"])
def test_huffman_refuses_what_is_no_table(damage):
    with pytest.raises(FormatError):
        huffman_decode(damage, 10)


@pytest.mark.parametrize("count", [0, 1, 4999, 5001, 10**9])
def test_huffman_refuses_another_number_of_symbols(count):
    with pytest.raises(FormatError):
        huffman_decode(huffman_encode(SEQUENCES["geometric"][:5000]), count)


def test_inflate_stops_a_bomb():
    bomb = deflate(bytes(10**7))
    assert len(bomb) < 20_000
    with pytest.raises(FormatError):
        inflate(bomb, 1000)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"\x07" + d])
def test_inflate_refuses_a_stream_that_is_not_exact(change):
    with pytest.raises(FormatError):
        inflate(change(deflate(b"a few bytes")), 11)


@pytest.mark.parametrize("alphabet", [1, 2, 3, 6, 7, 16, 17, 256])
@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_streams_give_back_symbols_of_any_alphabet(alphabet, count):
    symbols = np.random.default_rng(alphabet).integers(0, alphabet, count).astype(np.uint8)
    assert np.array_equal(Stream.encode(symbols, alphabet, "auto").decode(count, alphabet), symbols)


def test_two_values_take_a_bit_each():
    symbols = np.random.default_rng(0).integers(0, 2, 80_000).astype(np.uint8)
    assert len(Stream.encode(symbols, 2, "auto").data) == 10_000


def test_a_stream_with_an_unknown_symbol_is_refused():
    with pytest.raises(FormatError, match="symbol 9"):
        Stream(Coder.RAW, False, bytes([1, 9])).decode(2, 9)

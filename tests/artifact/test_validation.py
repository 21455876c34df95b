"""Files that nobody should trust: each rule of the format, and thousands of damaged files."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from artifact.coded import Everything, join, reseal, split
from torch import nn

from lightning_compress.artifact import FormatError, ModelFile, inspect_compressed, load_compressed, unpack_state
from lightning_compress.artifact.container import verify_model
from lightning_compress.artifact.entropy import Coder
from lightning_compress.artifact.fields import FieldReader, FieldWriter
from lightning_compress.artifact.format_error import FormatError as TheError
from lightning_compress.artifact.index import MAX_PLAN, NAME, Entry, Group, Index
from lightning_compress.artifact.mask_codec import BitMask, GapClass, GapMask
from lightning_compress.artifact.outer_file import MAX_HEADER, OuterFile, outer_header
from lightning_compress.artifact.streams import Stream

GOLDEN = Path(__file__).parent / "golden"
FILES = ("own_auto", "own_huffman", "own_rans", "own_rows", "index_auto", "index_rans")
LIMIT = 2**22


@cache
def golden(name="own_auto"):
    return (GOLDEN / f"{name}.lcz").read_bytes()


@pytest.fixture
def refused(tmp_path):
    def check(data, match=None, **kwargs):
        path = tmp_path / "forged.lcz"
        path.write_bytes(data)
        with pytest.raises(FormatError, match=match):
            unpack_state(path, **kwargs)

    return check


def with_index(index):
    """A file that holds nothing but an index."""
    return join({NAME: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, {NAME: index.to_bytes(0)})


def record(*parts, entry=None):
    """A file of one tensor, 8 numbers of a byte, with these fields as its record."""
    writer = FieldWriter()
    for part in parts:
        part.write(writer) if hasattr(part, "write") else writer.data.extend(part)
    entry = Entry("tensor", torch.uint8, (8,)) if entry is None else entry
    return Index(groups=(Group((entry,), None, bytes(writer.data)),))


def test_v1_a_pickle_is_not_opened(tmp_path, refused):
    torch.save({"a": torch.ones(3)}, tmp_path / "pickle")
    refused((tmp_path / "pickle").read_bytes(), "no model file")


def test_v2_a_header_too_long_is_not_read(refused):
    refused((MAX_HEADER + 1).to_bytes(8, "little") + bytes(MAX_HEADER + 1), "header")


def test_v3_a_later_version_says_upgrade(refused):
    header, tensors = split(golden())
    data = bytearray(tensors[NAME])
    data[2] = 2
    refused(join(header, {**tensors, NAME: bytes(data)}), "Upgrade")


@pytest.mark.parametrize("head", [3, 12, 255, 128])
def test_v3_an_unknown_form_is_refused(refused, monkeypatch, head):
    with pytest.raises(FormatError, match="unknown"):
        FieldReader(bytes([head]), "tensor")
        from lightning_compress.artifact.tensor_codec import Record

        Record.read(FieldReader(bytes([head, 1, 1, 1]), "tensor"), 8, 8, torch.uint8)


@pytest.mark.parametrize("head", [5, 6, 7, 12 << 3, 255])
def test_v3_an_unknown_model_of_a_range_coder_is_refused(refused, head):
    refused(with_index(record(b"\0", Stream(Coder.RANS, False, bytes([head, 1, 1, 1])))), "unknown")


def test_v4_a_wrong_checksum_is_found_before_anything_is_read(refused):
    header, tensors = split(golden())
    name = next(name for name, data in tensors.items() if name != NAME and data[:2] == b"LC")
    data = bytearray(tensors[name])
    data[-9] ^= 1
    refused(join(header, {**tensors, name: bytes(data)}, seal=False), "checksum")


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (2**47, 2), (2**40, 0, 2**40)])
def test_v5_a_small_file_of_a_huge_tensor_is_refused_before_memory_is_taken(refused, shape):
    entry = Entry("huge", torch.float32, shape)
    refused(with_index(Index(groups=(Group((entry,), None, b"\x01\x00" * 2000),))))


def test_v5_the_limit_counts_all_tensors_together(tmp_path, refused):
    refused(golden(), "max_total_bytes=1,000", max_total_bytes=1000)


def test_v6_a_stream_that_swells_is_stopped():
    from lightning_compress.artifact.entropy import deflate

    with pytest.raises(FormatError, match="exactly"):
        Stream(Coder.DEFLATE, False, deflate(bytes(10**6))).decode(8, 256)


def test_v7_gaps_beyond_the_end_are_refused():
    high = Stream(Coder.RAW, False, bytes([200]))
    with pytest.raises(FormatError, match="its length is 8"):
        GapMask(1, None, (GapClass(1, 0, 0, high, b""),)).decode(1, 8)


def test_v7_another_number_of_entries_is_refused():
    with pytest.raises(FormatError, match="entries"):
        BitMask(3, Stream.encode(np.array([1, 1, 0, 0], np.uint8), 2, "auto")).decode(1, 4)
    with pytest.raises(FormatError, match="escape"):
        GapMask(1, None, (GapClass(1, 0, 0, Stream(Coder.RAW, False, b"\xff"), b""),)).decode(1, 1000)


def test_v8_a_value_that_the_codebook_has_not_is_refused():
    with pytest.raises(FormatError, match="symbol"):
        Stream(Coder.RAW, False, bytes([3])).decode(1, 3)


def test_v9_shapes_and_names_must_be_the_networks():
    from lightning_compress.errors import CompressionError

    with pytest.raises(CompressionError, match="another network"):
        load_compressed(GOLDEN / "own_auto.lcz", into=nn.Linear(2, 2))


@pytest.mark.parametrize("aliases", [{"b": "gone"}, {"b": "c", "c": "tensor"}, {"b": "b"}, {"tensor": "tensor"}])
def test_v10_aliases_point_at_stored_tensors_only(refused, aliases):
    refused(with_index(Index(aliases=aliases, groups=record(b"\x01\x00").groups)), "tied|one name")


def test_v11_a_name_that_stands_twice_is_refused(refused):
    groups = record(b"\x01\x00").groups
    refused(with_index(Index(groups=groups * 2)), "one name")
    raw = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    refused(len(raw).to_bytes(8, "little") + raw, "twice")


def test_v12_bytes_behind_the_last_tensor_are_refused(refused):
    refused(golden() + b"\0", "bytes of tensors")


def test_v12_bytes_behind_the_last_field_are_refused(refused):
    index = Index(groups=record(b"\x01\x00").groups)
    refused(
        join({NAME: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, {NAME: index.to_bytes(0)[:-4] + b"\0" * 5})
    )


def test_v13_a_huffman_code_must_be_complete():
    with pytest.raises(FormatError, match="complete"):
        Stream(Coder.HUFFMAN, False, b"\x01" + b"\x00\xff").decode(2, 256)


def test_v14_a_plan_that_is_none_is_a_format_error(tmp_path):
    path = tmp_path / "forged.lcz"
    path.write_bytes(with_index(Index(plan={"version": 1, "edits": [{"kind": "run"}]})))
    with pytest.raises(FormatError, match="Plan"):
        load_compressed(path, into=nn.Module())
    with pytest.raises(FormatError, match="Plan"):
        inspect_compressed(path)


def test_v14_a_plan_that_would_swell_is_refused(refused):
    plan = {"version": 1, "edits": ["a" * (MAX_PLAN // 2)]}
    refused(with_index(Index(plan=plan)), "cannot be a Plan")


def test_v15_the_former_files_are_written_again(tmp_path, monkeypatch):
    from lightning_compress.artifact import save_compressed

    save_compressed(
        Everything(), tmp_path / "m", coder="huffman", metrics={"accuracy": 0.5}, metadata={"note": "version 1"}
    )
    assert (tmp_path / "m").read_bytes() == golden("index_huffman")


@pytest.mark.parametrize(
    "change", [lambda h: h.pop(NAME), lambda h: h[NAME].update(dtype="F32"), lambda h: h[NAME].update(shape=-1)]
)
def test_headers_that_are_none_are_refused(refused, change):
    header, tensors = split(golden())
    change(header)
    raw = json.dumps(header).encode()
    refused(len(raw).to_bytes(8, "little") + raw + b"".join(tensors.values()))


def accepts(path):
    """Whether a file is read; whatever else than a FormatError flies is a fault of ours."""
    try:
        verify_model(path)
    except TheError:
        return False
    inspect_compressed(path)
    return True


def flips(path, places):
    data = bytearray(golden())
    for place in places:
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        yield place, accepts(path)
        data[place // 8] ^= 1 << place % 8


def mutate(rng):
    """One to four bytes changed, put in or taken out, in a tensor or in the index, with all checksums put right."""
    header, tensors = split(golden(FILES[rng.integers(len(FILES))]))
    coded = [name for name, data in tensors.items() if data[:2] == b"LC"]
    name = coded[rng.integers(len(coded))]
    data = bytearray(tensors[name])
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(3, max(4, len(data) - 4))) if rng.random() < 0.5 else int(rng.integers(3, 40))
        kind = rng.integers(3)
        if kind == 0:
            data[place] = rng.integers(256)
        elif kind == 1:
            data[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 4)).astype(np.uint8))
        else:
            del data[place : place + int(rng.integers(1, 4))]
    return reseal(join(header, {**tensors, name: bytes(data)}))


def fuzz(path, number, seed):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        path.write_bytes(mutate(rng))
        accepts(path)


def test_a_flipped_bit_is_found(tmp_path):
    size = 8 * len(golden())
    places = np.random.default_rng(0).choice(size, 500, replace=False)
    assert not [place for place, accepted in flips(tmp_path / "f", places.tolist()) if accepted]


def test_mutated_files_raise_nothing_but_format_errors(tmp_path):
    fuzz(tmp_path / "f", 1000, 0)


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path):
    assert not [place for place, accepted in flips(tmp_path / "f", range(8 * len(golden()))) if accepted]


@pytest.mark.slow
def test_100_000_mutated_files_raise_nothing_but_format_errors(tmp_path):
    fuzz(tmp_path / "f", 100_000, 1)


def test_a_file_of_many_gigabytes_is_opened(tmp_path):
    """Of holes: the disk gives zeros."""
    path, size = tmp_path / "large.lcz", 2**33
    header = outer_header(dict.fromkeys("abc", (torch.uint8, (size,))), {})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 3 * size)
    assert [tensor.bytes for tensor in OuterFile.open(path).tensors.values()] == [size] * 3


def test_an_opened_file_has_taken_no_memory_for_its_tensors(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(with_index(Index(groups=(Group((Entry("zeros", torch.float32, (2**21,)),), None, b"\x01\x00"),))))
    assert ModelFile.open(path).total_bytes == 2**23

"""The fields of the binary headers: bounded numbers, bytes of stated length, names that share their beginnings."""

from __future__ import annotations

import zlib
from typing import TypeAlias

from lightning_compress.artifact.format_error import FormatError

Data: TypeAlias = bytes | memoryview
"""Bytes, or a part of them without a copy."""

MAX_NAME = 1_000
ENDINGS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Last parts of names that are written as one byte; part of the format."""


class FieldWriter:
    r"""Collects fields.

    >>> writer = FieldWriter()
    >>> writer.number(300)
    >>> bytes(writer.data)
    b'\xac\x02'
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._name = ""

    def number(self, value: int) -> None:
        """A number >= 0, seven bits a byte, lowest first."""
        while value > 127:
            self.data.append(value & 127 | 128)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        """Any whole number; small ones are short."""
        self.number(2 * value if value >= 0 else -2 * value - 1)

    def block(self, data: bytes) -> None:
        """Bytes, behind their number."""
        self.number(len(data))
        self.data += data

    def name(self, name: str) -> None:
        """A tensor's name: what it shares with the name before, its stem, its ending."""
        text = name.encode()
        stem, ending = _split_ending(text)
        shared = 0
        for mine, before in zip(stem, _split_ending(self._name.encode())[0], strict=False):
            if mine != before:
                break
            shared += 1
        self.number(shared)
        self.number(8 * (len(stem) - shared) + ending)
        self.data += stem[shared:]
        self._name = name


class FieldReader:
    """Reads fields of bytes that nobody trusts; every error is a FormatError that names the tensor.

    Args:
        data: the bytes.
        where: whose they are, for the message.
    """

    def __init__(self, data: Data, where: str) -> None:
        self.where = where
        self.position = 0
        self._data = memoryview(data)
        self._name = ""

    @property
    def left(self) -> int:
        """Number of bytes that have not been read."""
        return len(self._data) - self.position

    def refuse(self, reason: str) -> FormatError:
        """The error to raise."""
        return FormatError(f"{self.where}: {reason}. The file is damaged or was not written by this package.")

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes; no copy."""
        if not 0 <= size <= self.left:
            raise self.refuse(f"{size} bytes were announced where {self.left} are left")
        self.position += size
        return self._data[self.position - size : self.position]

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def number(self, largest: int) -> int:
        """A number from 0 to ``largest``, in its shortest form."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 63:
                raise self.refuse("a number has no end")
        if value > largest or (byte == 0 and shift > 7):
            raise self.refuse(f"{value} where at most {largest} can stand")
        return value

    def signed(self, largest: int) -> int:
        """A whole number of at most ``largest`` in magnitude."""
        value = self.number(2 * largest)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def block(self) -> memoryview:
        """Bytes, behind their number."""
        return self.take(self.number(self.left))

    def since(self, start: int) -> bytes:
        """What has been read from the position ``start`` on."""
        return self._data[start : self.position].tobytes()

    def text(self) -> str:
        """A short text."""
        data = self.block()
        try:
            return data.tobytes().decode()
        except UnicodeDecodeError:
            raise self.refuse("a text is none") from None

    def name(self) -> str:
        """A tensor's name."""
        before = _split_ending(self._name.encode())[0]
        shared = self.number(len(before))
        length = self.number(8 * MAX_NAME + 7)
        stem = before[:shared] + self.take(length // 8)
        if length % 8 > len(ENDINGS):
            raise self.refuse(f"the ending {length % 8} of a name is unknown")
        try:
            self._name = stem.decode() + ("", *ENDINGS)[length % 8]
        except UnicodeDecodeError:
            raise self.refuse("a name is no text") from None
        if not 0 < len(self._name) <= MAX_NAME:
            raise self.refuse(f"a name has {len(self._name)} characters")
        return self._name

    def finish(self) -> None:
        """Refuse bytes that nobody has asked for."""
        if self.left:
            raise self.refuse(f"{self.left} bytes too many")


def seal(data: bytes, context: int = 0) -> bytes:
    """``data`` and its CRC32 behind it; ``context`` is the CRC32 of what stands before it.

    >>> unseal(seal(b"abc"), "x").tobytes()
    b'abc'
    """
    return data + zlib.crc32(data, context).to_bytes(4, "little")


def unseal(data: Data, where: str, context: int = 0) -> memoryview:
    """What :func:`seal` sealed; no copy.

    Raises:
        FormatError: a byte is not what it was.
    """
    data = memoryview(data)
    if len(data) < 4 or zlib.crc32(data[:-4], context).to_bytes(4, "little") != data[-4:]:
        raise FormatError(f"{where}: the checksum is wrong; the file is damaged. Copy it again.")
    return data[:-4]


def _split_ending(name: bytes) -> tuple[bytes, int]:
    for code, ending in enumerate(ENDINGS, start=1):
        if name.endswith(ending.encode()):
            return name[: -len(ending)], code
    return name, 0

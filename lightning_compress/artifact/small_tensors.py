"""Small tensors together: one table for all that are alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.artifact.dtypes import bits_of
from lightning_compress.artifact.entropy import CoderName
from lightning_compress.artifact.fields import FieldWriter
from lightning_compress.artifact.index import Entry, Group
from lightning_compress.artifact.tensor_codec import encode_pieces, entropy_bound, pieces
from lightning_compress.artifact.value_codec import Kind

FEW_WEIGHTS = 2**15
HEADER = 3
"""Bytes that a group takes besides its members and its records."""


@dataclass(frozen=True)
class Coded:
    """A coded tensor.

    Attributes:
        records: the bytes.
        excess: by how many thousandths they are more than the zero-order bound; None where there is none.
        likeness: kind and storage of the values; tensors with the same one may share a table.
    """

    records: bytearray
    excess: int | None
    likeness: tuple[bool, int]


def code_tensor(tensor: Tensor, coder: CoderName) -> Coded:
    r"""The smallest form of a tensor on the CPU.

    >>> code_tensor(torch.zeros(1000, 1000), "auto").records
    bytearray(b'\x01\x00')
    """
    writer = FieldWriter()
    few, storage = True, 0
    for record in encode_pieces(tensor, coder):
        record.write(writer)
        if record.values is not None:
            few = few and record.values.kind in (Kind.CODEBOOK, Kind.GRID)
            storage = max(storage, record.values.storage)
    bound = 0.0
    if few:
        bits = bits_of(tensor)
        bound = sum(entropy_bound(bits[start:stop]) for start, stop, _ in pieces(tensor.shape))
    excess = int(1000 * len(writer.data) / bound) - 1000 if bound >= 1 else None
    return Coded(writer.data, excess, (few, storage))


class SmallTensors:
    """Gathers small tensors and groups those that are smaller together."""

    def __init__(self, coder: CoderName) -> None:
        self._coder = coder
        self._groups: list[Group] = []
        self._alike: dict[tuple[torch.dtype, tuple[bool, int]], list[tuple[Tensor, Group]]] = {}

    def add(self, entry: Entry, tensor: Tensor, coded: Coded) -> None:
        """One more."""
        group = Group((entry,), coded.excess, bytes(coded.records))
        if entry.size < FEW_WEIGHTS:
            self._alike.setdefault((entry.dtype, coded.likeness), []).append((tensor, group))
        else:
            self._groups.append(group)

    def groups(self) -> tuple[Group, ...]:
        """The groups, by the name of their first member."""
        groups = list(self._groups)
        for likes in self._alike.values():
            alone = [group for _, group in likes]
            together = code_tensor(torch.cat([tensor.reshape(-1) for tensor, _ in likes]), self._coder)
            if len(together.records) < sum(len(group.records) + HEADER for group in alone) - HEADER:
                members = tuple(group.members[0] for group in alone)
                groups.append(Group(members, together.excess, bytes(together.records)))
            else:
                groups.extend(alone)
        return tuple(sorted(groups, key=lambda group: group.members[0].name))

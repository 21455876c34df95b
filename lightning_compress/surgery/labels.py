"""Labels: which unit each entry of a tensor belongs to, and which of them are one and the same unit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor


class Labels:
    """Numbers for units, from 1 up; 0 stands for none. Joined numbers are one unit.

    A tensor's labels are an int64 tensor of its shape, mostly an expanded one: along batch and positions all entries
    belong to the same unit, and there it takes no memory.

    >>> labels = Labels()
    >>> one, two = labels.fresh(2), labels.fresh(2)
    >>> labels.join(one, two)
    >>> labels.units(torch.cat([one, two])).tolist() == 2 * labels.units(one).tolist()
    True
    """

    def __init__(self) -> None:
        self._next = 1
        self._pairs: list[Tensor] = []
        self._components: Tensor | None = None
        self.refused: list[tuple[Tensor, str]] = []

    def fresh(self, count: int) -> Tensor:
        """``count`` numbers that nothing else has."""
        start, self._next = self._next, self._next + count
        self._components = None
        return torch.arange(start, start + count)

    def join(self, one: Tensor, two: Tensor) -> None:
        """Entries at the same place are of the same unit; shapes broadcast, and 0 joins with nothing."""
        one, two = _core(one, two)
        differ = (one != two) & (one != 0) & (two != 0)
        if bool(differ.any()):
            self._pairs.append(torch.stack([one[differ], two[differ]]))
            self._components = None

    def refuse(self, labels: Tensor, reason: str) -> None:
        """No unit among ``labels`` can be taken out."""
        numbers = distinct(labels)
        if numbers.numel():
            self.refused.append((numbers, reason))

    def units(self, labels: Tensor) -> Tensor:
        """The unit of each label, numbered in any order; -1 for 0."""
        if self._components is None:
            pairs = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *self._pairs], dim=1).numpy()
            ones = np.ones(pairs.shape[1], dtype=np.int8)
            graph = coo_matrix((ones, (pairs[0], pairs[1])), shape=(self._next, self._next))
            self._components = torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))
        return torch.where(labels == 0, -1, self._components[labels])


def along(labels: Tensor, dim: int, shape: Iterable[int]) -> Tensor:
    """``labels``, a vector, along ``dim`` of a tensor of ``shape``; the same everywhere else.

    >>> along(torch.tensor([5, 7]), 1, (2, 2)).tolist()
    [[5, 7], [5, 7]]
    """
    shape = list(shape)
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)


def varies(labels: Tensor, dim: int) -> bool:
    """Whether entries along ``dim`` belong to different units."""
    if labels.size(dim) < 2 or labels.stride(dim) == 0:
        return False
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def compressed(labels: Tensor) -> Tensor:
    """The same labels, without memory for dimensions along which they do not vary."""
    for dim in range(labels.dim()):
        if labels.size(dim) > 1 and labels.stride(dim) != 0 and not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def distinct(labels: Tensor) -> Tensor:
    """The numbers that occur, without 0."""
    (core,) = _core(labels)
    numbers: Tensor = torch.unique(core)
    return numbers[numbers != 0]


def _core(*labels: Tensor) -> list[Tensor]:
    """Broadcast to one shape, and cut to one entry along dimensions where none of them can vary."""
    wide = list(torch.broadcast_tensors(*labels))  # type: ignore[no-untyped-call]
    for dim in range(wide[0].dim()):
        if wide[0].size(dim) > 1 and all(one.stride(dim) == 0 for one in wide):
            wide = [one.narrow(dim, 0, 1) for one in wide]
    return wide

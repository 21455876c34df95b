"""What brings a student's features to a teacher's shape: built from shapes alone, trained beside the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

Shape: TypeAlias = tuple[int, ...]
"""Of one sample's features: (channels,) a vector, (length, channels) tokens, (channels, height, width) a map."""
Features: TypeAlias = tuple[Tensor, ...]
Function = TypeVar("Function", bound=Callable[..., Tensor])


class Adapter(nn.Module):
    """Turns features of student and teacher into the arguments of a loss; this one leaves them as they are.

    Args:
        students: shapes of the student's features.
        teachers: shapes of the teacher's features, as many.

    >>> Adapter([(3,)], [(5,)])((torch.zeros(2, 3),), (torch.zeros(2, 5),))[1].shape
    torch.Size([2, 5])
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__()

    def inputs(self) -> list[tuple[str, int]]:
        """Names of the Linear layers that read the student's channels, each with the position of its feature."""
        return []

    def forward(self, students: Features, teachers: Features) -> tuple[Any, ...]:
        """The arguments of the loss."""
        return students[0], teachers[0]


class ToTeacherShape(Adapter):
    """A linear map from the student's channels to the teacher's, and pooling or interpolation where positions differ.

    The regressor of Romero et al., "FitNets", ICLR 2015, arXiv:1412.6550. It begins as the identity where the numbers
    of channels agree. Vectors, tokens and maps go into each other: a mean over positions, or the same at all of them.

    >>> adapter = ToTeacherShape([(8,)], [(4, 2, 2)])
    >>> adapter((torch.zeros(3, 8),), (torch.zeros(3, 4, 2, 2),))[0].shape
    torch.Size([3, 4, 2, 2])
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__(students, teachers)
        self.channels = nn.Linear(channels_of(students[0]), channels_of(teachers[0]))
        if self.channels.in_features == self.channels.out_features:
            nn.init.eye_(self.channels.weight)
            nn.init.zeros_(self.channels.bias)

    def inputs(self) -> list[tuple[str, int]]:
        """The linear map."""
        return [("channels", 0)]

    def forward(self, students: Features, teachers: Features) -> tuple[Any, ...]:
        """Adapted features and the teacher's, of one shape."""
        return from_rows(self.channels(to_positions(students[0], teachers[0])), teachers[0]), teachers[0]


class WithVariance(ToTeacherShape):
    """The adapted features as a mean, and a learned variance of each of the teacher's channels.

    >>> mean, teacher, variance = WithVariance([(8,)], [(4,)])((torch.zeros(3, 8),), (torch.zeros(3, 4),))
    >>> variance.shape
    torch.Size([4])
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__(students, teachers)
        self.raw_variance = nn.Parameter(torch.full((channels_of(teachers[0]),), 5.0).expm1().log())

    def forward(self, students: Features, teachers: Features) -> tuple[Any, ...]:
        """Mean, the teacher's features, variance."""
        return *super().forward(students, teachers), nn.functional.softplus(self.raw_variance) + 1e-5


class Embeddings(Adapter):
    """Both features as vectors of 128 numbers, by one linear map each.

    >>> [e.shape for e in Embeddings([(8,)], [(4, 2, 2)])((torch.zeros(3, 8),), (torch.zeros(3, 4, 2, 2),))]
    [torch.Size([3, 128]), torch.Size([3, 128])]
    """

    size = 128

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__(students, teachers)
        self.student = nn.Linear(channels_of(students[0]), self.size)
        self.teacher = nn.Linear(channels_of(teachers[0]), self.size)

    def inputs(self) -> list[tuple[str, int]]:
        """The student's map."""
        return [("student", 0)]

    def forward(self, students: Features, teachers: Features) -> tuple[Any, ...]:
        """The two embeddings."""
        return self.student(to_vector(students[0])), self.teacher(to_vector(teachers[0]))


class Fusion(Adapter):
    """Features of several stages, from deep to shallow, each fused with what came from below it.

    The attention-based fusion of Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044,
    with linear maps over channels and no BatchNorm, so that adapters have no running statistics.

    >>> fusion = Fusion([(4, 4, 4), (8, 2, 2)], [(6, 4, 4), (12, 2, 2)])
    >>> fused, _ = fusion((torch.zeros(1, 4, 4, 4), torch.zeros(1, 8, 2, 2)), (torch.zeros(1, 6, 4, 4),) * 2)
    >>> [tuple(one.shape) for one in fused]
    [(1, 6, 4, 4), (1, 12, 2, 2)]
    """

    middle = 64

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> None:
        super().__init__(students, teachers)
        self.enter = nn.ModuleList(nn.Linear(channels_of(shape), self.middle) for shape in students)
        self.attend = nn.ModuleList(nn.Linear(2 * self.middle, 2) for _ in pairwise(students))
        self.leave = nn.ModuleList(nn.Linear(self.middle, channels_of(shape)) for shape in teachers)

    def inputs(self) -> list[tuple[str, int]]:
        """The entrance of each stage."""
        return [(f"enter.{stage}", stage) for stage in range(len(self.enter))]

    def forward(self, students: Features, teachers: Features) -> tuple[Any, ...]:
        """Tuples of fused features and of the teacher's, shallow first."""
        fused: list[Tensor] = []
        below: Tensor | None = None
        for stage in reversed(range(len(students))):
            rows = self.enter[stage](to_rows(students[stage]))
            if below is not None:
                size = rows.shape[1:-1]
                below = interpolate(below.movedim(-1, 1), size=size, mode="nearest").movedim(1, -1)
                gates = self.attend[stage](torch.cat([rows, below], dim=-1)).sigmoid()
                rows = rows * gates[..., :1] + below * gates[..., 1:]
            below = rows
            fused.insert(0, self.leave[stage](rows).movedim(-1, 1))
        return tuple(fused), teachers


def adapted(adapter: type[Adapter]) -> Callable[[Function], Function]:
    """Declare which adapter a loss on features needs."""

    def mark(function: Function) -> Function:
        function.adapter = adapter  # type: ignore[attr-defined]
        return function

    return mark


def adapter_of(loss: Callable[..., Tensor]) -> type[Adapter]:
    """What :func:`adapted` declared, of a partial too; :class:`Adapter` where nothing was.

    >>> from lightning_compress.distillation.features.hint import hint
    >>> adapter_of(partial(hint)).__name__
    'ToTeacherShape'
    """
    while isinstance(loss, partial):
        loss = loss.func
    found: type[Adapter] = getattr(loss, "adapter", Adapter)
    return found


def channels_of(shape: Shape) -> int:
    """Channels of one sample's features: the last number of a vector or of tokens, the first of a map."""
    return shape[0] if len(shape) > 2 else shape[-1]


def to_rows(features: Tensor) -> Tensor:
    """Channels last: (N, channels), (N, length, channels), (N, height, width, channels)."""
    return features.movedim(1, -1) if features.dim() > 3 else features


def to_vector(features: Tensor) -> Tensor:
    """Mean over positions: (N, channels)."""
    rows = to_rows(features)
    return rows.flatten(1, -2).mean(dim=1) if rows.dim() > 2 else rows


def to_positions(features: Tensor, like: Tensor) -> Tensor:
    """``features`` with the channels last and as many positions as ``like`` has, in its layout."""
    rows, positions = to_rows(features), to_rows(like).shape[1:-1]
    if rows.shape[1:-1] == positions:
        return rows
    if not positions:
        return to_vector(features)
    if rows.dim() == 2:
        return rows.view(len(rows), *[1] * len(positions), -1).expand(-1, *positions, -1)
    if rows.dim() == 4 and len(positions) == 2:
        return _resized(rows, positions)
    flat = rows.flatten(1, -2).movedim(-1, 1)
    length = positions.numel()
    if flat.shape[-1] != length:
        flat = interpolate(flat, size=length, mode="linear", align_corners=False)
    resized: Tensor = flat.movedim(1, -1).reshape(len(flat), *positions, -1)
    return resized


def _resized(rows: Tensor, size: Sequence[int]) -> Tensor:
    maps = rows.movedim(-1, 1)
    smaller = all(a >= b for a, b in zip(maps.shape[2:], size, strict=True))
    if smaller:
        return adaptive_avg_pool2d(maps, (size[0], size[1])).movedim(1, -1)
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False).movedim(1, -1)


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Back to the layout of ``like``."""
    return rows.movedim(-1, 1) if like.dim() > 3 else rows

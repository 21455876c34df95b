"""Exit heads as a part of a network: small classifiers behind some of its modules, and when a sample leaves there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from lightning_compress.errors import PlanError
from lightning_compress.plan.edits import Inverse, find_module
from lightning_compress.plan.specs import Extent, ModuleSpec, build_module, check_spec, plain

BANK = "early_exits"
"""Name of the child that holds the heads."""
MAX_EXITS, MAX_POOL, MAX_NAME = 1_000, 64, 1_000


class ExitBank(nn.Module):
    """The exit heads of one network, called by whoever routes samples; as a layer it passes on what it gets.

    So it may hang on any module, an ``nn.Sequential`` too, without changing what that computes.

    Attributes:
        points: names, in the network that the bank hangs on, of the modules whose outputs the heads read.
        pools: for each head the number of positions, along each dimension, that maps are averaged to.
        confidence: name of the confidence that the thresholds are meant for.
        heads: from pooled features (N, features) to logits (N, classes).
        thresholds: one for each head: a sample leaves where its confidence reaches it; infinite where nobody leaves.
        costs: multiply-accumulates of a sample that leaves there, the heads before included; the last is of the whole.
        shares: for each exit the share of calibration samples that left there; zeros before a calibration.

    >>> bank = ExitBank(["0"], [1], "margin", [nn.Linear(3, 2)])
    >>> bank.logits(0, torch.zeros(5, 3, 4, 4)).shape, bank(torch.ones(2)).tolist()
    (torch.Size([5, 2]), [1.0, 1.0])
    """

    thresholds: Tensor
    costs: Tensor
    shares: Tensor

    def __init__(
        self, points: Sequence[str], pools: Sequence[int], confidence: str, heads: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.points, self.pools, self.confidence = list(points), list(pools), confidence
        self.heads = nn.ModuleList(heads)
        self.register_buffer("thresholds", torch.full((len(points),), float("inf")))
        self.register_buffer("costs", torch.zeros(len(points) + 1, dtype=torch.float64))
        self.register_buffer("shares", torch.zeros(len(points) + 1))

    def forward(self, value: Tensor) -> Tensor:
        """``value``."""
        return value

    def logits(self, exit_: int, features: Tensor) -> Tensor:
        """What head number ``exit_`` says of features (N, ...): shape (N, classes)."""
        answer: Tensor = self.heads[exit_](pool_features(features, self.pools[exit_]))
        return answer


def pool_features(features: Tensor, positions: int) -> Tensor:
    """Features of any kind as vectors (N, features).

    Args:
        features: (N, channels) vectors, which stay; (N, length, channels) tokens, which are averaged; (N, channels,
            height, width) maps, or volumes, averaged to ``positions`` along each of their dimensions.
        positions: at most; a smaller map keeps its size.

    >>> [pool_features(torch.zeros(shape), 2).shape[1] for shape in [(1, 5), (1, 7, 5), (1, 5, 8, 8), (1, 5, 1, 8)]]
    [5, 5, 20, 10]
    """
    if features.dim() == 2:
        return features
    if features.dim() == 3:
        return features.mean(dim=1)
    lengths = _lengths(features)
    size = [min(positions, length) for length in lengths]
    if all(one == 1 for one in size):
        return features.flatten(2).mean(dim=2)
    if features.dim() == 4:
        height, width = lengths
        if height % size[0] == width % size[1] == 0:  # the same, for every exporter
            parts = features.reshape(-1, features.shape[1], size[0], height // size[0], size[1], width // size[1])
            return parts.mean(dim=(3, 5)).flatten(1)
        return adaptive_avg_pool2d(features, (size[0], size[1])).flatten(1)
    if features.dim() == 5:
        return adaptive_avg_pool3d(features, (size[0], size[1], size[2])).flatten(1)
    return adaptive_avg_pool1d(features.flatten(2), positions).flatten(1)


def _lengths(features: Tensor) -> list[int]:
    """Of a map's dimensions, which are constants in an exported graph."""
    if not torch._C._is_tracing():
        return list(features.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [int(length) for length in features.shape[2:]]


@dataclass(frozen=True)
class AttachExits:
    """Exit heads, with zero weights, hung on the module ``place`` as its child ``early_exits``.

    Whoever decides the edit fills the weights and the buffers in; a file brings its own.

    Attributes:
        place: dotted name of the network that the exits belong to; "" for the root.
        points: see :class:`ExitBank`; names relative to ``place``.
        pools: see :class:`ExitBank`.
        confidence: see :class:`ExitBank`.
        heads: the spec of each head.
        label: the edit in a few words.
        extent: how large the heads are.

    Raises:
        PlanError: no exit, lists of different lengths, a point twice, or a spec outside the closed set.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> head = {"type": "Linear", "arguments": {"in_features": 3, "out_features": 2}}
    >>> inverse = AttachExits("", ("1",), (1,), "margin", (head,)).apply(net)
    >>> net(torch.zeros(1, 4)).shape, "early_exits.heads.0.weight" in net.state_dict()
    (torch.Size([1, 2]), True)
    >>> _ = inverse.apply(net)
    >>> len(net)
    3
    """

    place: str
    points: tuple[str, ...]
    pools: tuple[int, ...]
    confidence: str
    heads: tuple[ModuleSpec, ...]
    label: str = ""
    extent: Extent = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "exits"

    def __post_init__(self) -> None:
        number = len(self.points)
        if not 1 <= number <= MAX_EXITS or not number == len(self.pools) == len(self.heads):
            raise PlanError(f"{number} exits with {len(self.pools)} pools and {len(self.heads)} heads: one of each.")
        texts = [self.place, self.confidence, *self.points]
        if not all(isinstance(text, str) and len(text) <= MAX_NAME for text in texts) or len({*self.points}) < number:
            raise PlanError(f"Exits behind {self.points!r}: each is the name of another module.")
        if not all(type(pool) is int and 1 <= pool <= MAX_POOL for pool in self.pools):
            raise PlanError(f"Exits pool to between 1 and {MAX_POOL} positions, not {self.pools!r}.")
        extents = [check_spec(spec) for spec in self.heads]
        total = Extent(sum(one.modules for one in extents), sum(one.elements for one in extents))
        object.__setattr__(self, "extent", total)
        object.__setattr__(self, "heads", tuple(plain(spec) for spec in self.heads))

    @property
    def touched(self) -> frozenset[str]:
        """The heads' name with a star."""
        return frozenset({f"{self.place}.{BANK}.*" if self.place else f"{BANK}.*"})

    def check(self, module: nn.Module) -> None:
        """Refuse a place or a point that does not exist, and a network that has exits."""
        place = find_module(module, self.place)
        if hasattr(place, BANK):
            raise PlanError(f"{self.place or 'The network'!r} has {BANK!r} already.")
        for point in self.points:
            find_module(place, point)

    def apply(self, module: nn.Module) -> DetachExits:
        """Hang the heads on; returns the edit that takes them off."""
        self.check(module)
        place = find_module(module, self.place)
        tensors = chain(place.parameters(), module.parameters())
        anchor = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        heads = [build_module(spec, device=anchor.device, dtype=anchor.dtype) for spec in self.heads]
        bank = ExitBank(self.points, self.pools, self.confidence, heads).to(anchor.device)
        place.add_module(BANK, bank.train(place.training))
        return DetachExits(self)

    def carry(self, name: str, tensor: Tensor) -> Tensor:
        """Nothing carries over."""
        return tensor


@dataclass(frozen=True)
class DetachExits(Inverse[AttachExits]):
    """The inverse of :class:`AttachExits`: the heads go."""

    def check(self, module: nn.Module) -> None:
        """Refuse a module without exits there."""
        if not isinstance(getattr(find_module(module, self.of.place), BANK, None), ExitBank):
            raise PlanError(f"{self.of.place or 'The network'!r} has no {BANK!r}.")

    def apply(self, module: nn.Module) -> AttachExits:
        """Take the heads off."""
        self.check(module)
        delattr(find_module(module, self.of.place), BANK)
        return self.of

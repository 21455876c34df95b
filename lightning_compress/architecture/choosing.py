"""What is asked for, checked at once, and what it comes to: which layer becomes what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lightning_compress.architecture.allocation import LOW_RANK, allocate_network, break_even, options_of
from lightning_compress.architecture.costs import COUNTS, dense_spec, input_shapes, randomize_
from lightning_compress.architecture.factorization import PACKAGE, Choice, Factorization, rounded
from lightning_compress.architecture.geometry import Geometry
from lightning_compress.architecture.layers import Layers
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.architecture.ranks.energy import energy
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.measure import check_runtime, compare_latency, runner
from lightning_compress.plan.specs import build_module
from lightning_compress.registry import names, resolve
from lightning_compress.surgery.input_statistics import layer_weight
from lightning_compress.surgery.paired_moments import moments_of
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.surgery.tracing import TracingInput, private_copy
from lightning_compress.values import is_number, is_whole

RULES = "lightning_compress.architecture.ranks"
ORDERS = ("auto", "depthwise_first", "pointwise_first")
ALIGNED = 8
"""Ranks that a latency budget chooses among are multiples of this, where there is room."""
STEM = 4
"""Channels of pictures: a layer that reads no more has little to win and much to lose."""
Rule: TypeAlias = Callable[[Tensor, tuple[int, int]], int]
"""``f(singular values, shape of the matrix) -> rank``."""
Choices: TypeAlias = tuple[dict[str, Choice], dict[str, str]]
"""Layer -> what it becomes, in order; and layer -> why it is left alone."""


class Settings(Protocol):
    """Whoever chooses."""

    data_aware: bool

    def choose(self, network: nn.Module, layers: Layers, calls: Sequence[TracingInput]) -> Choices:
        """Which layers become what; random states are the caller's to isolate."""


class LowRankChoice:
    """See :class:`~lightning_compress.architecture.LowRank` for the arguments.

    Raises:
        CompressionError: a value out of its range, an unknown name, or not exactly one of budget, speedup and ranks.
    """

    def __init__(
        self,
        budget: float | None = None,
        *,
        of: str = "params",
        speedup: float | None = None,
        ranks: Any = None,
        methods: Sequence[str] | None = None,
        round_to: int | str = "auto",
        data_aware: bool = True,
        runtime: str = "eager",
        batch_size: int = 1,
    ) -> None:
        if sum(one is not None for one in (budget, speedup, ranks)) != 1:
            raise CompressionError(
                "LowRank takes one of: a budget such as 0.25, a speedup such as 2.0, or ranks such as 'energy'."
            )
        if budget is not None and not (isinstance(budget, int | float) and 0 < budget < 1):
            raise CompressionError(f"LowRank(budget={budget!r}): the share that is left, in (0, 1); 0.25 is 4x less.")
        if speedup is not None and not (is_number(speedup) and 1 < speedup < inf):
            raise CompressionError(f"LowRank(speedup={speedup!r}): 2.0 is twice as fast; it has to be above 1.")
        if of not in COUNTS:
            raise CompressionError(f"LowRank(of={of!r}). {did_you_mean(of, COUNTS)}")
        if not (round_to == "auto" or (type(round_to) is int and round_to >= 1)):
            raise CompressionError(f'LowRank(round_to={round_to!r}): a whole number from 1, or "auto".')
        if not is_whole(batch_size) or batch_size < 1:
            raise CompressionError(f"LowRank(batch_size={batch_size!r}): at least one sample is timed.")
        self.budget = 1 / speedup if speedup is not None else budget
        self.of = "latency" if speedup is not None else of
        if self.of == "latency":
            check_runtime(runtime)
        refuse_text(methods, "methods")
        self.methods = tuple(LOW_RANK if methods is None else methods)
        if not self.methods:
            raise CompressionError("LowRank(methods=()): nothing to choose among. None is channel, spatial and tucker.")
        for method in self.methods:
            resolve(method, PACKAGE)
        self._rule, self._ranks = _ranks(ranks)
        self.multiple = round_to if isinstance(round_to, int) else ALIGNED if self.of == "latency" else 1
        self.data_aware, self.runtime, self.batch_size = data_aware, runtime, batch_size

    def choose(self, network: nn.Module, layers: Layers, calls: Sequence[TracingInput]) -> Choices:
        """Within the budget, by the rule, or as it was said."""
        if self.budget is None:
            return self._by_rank(network, layers, calls)
        choices = allocate_network(
            network,
            layers,
            calls,
            self.budget,
            of=self.of,
            methods=self.methods,
            multiple=self.multiple,
            data_aware=self.data_aware,
            runtime=self.runtime,
            batch_size=self.batch_size,
        )
        kept = {name: "worth more than it would save" for name in layers.calls if name not in choices}
        return {name: choices[name] for name in layers.calls if name in choices}, kept

    def _by_rank(self, network: nn.Module, layers: Layers, calls: Sequence[TracingInput]) -> Choices:
        shapes = input_shapes(network, list(layers.calls), calls[0]) if calls else {}
        _refuse_unknown("ranks", self._ranks, layers)
        choices, kept = dict[str, Choice](), dict[str, str]()
        for name in layers.calls if self._rule is not None else [one for one in layers.calls if one in self._ranks]:
            layer = network.get_submodule(name)
            choice = self._choice(layer, self._ranks.get(name))
            bias = (self.data_aware and bool(calls)) or layer.bias is not None
            reason = f"no factorisation of {self.methods} fits it"
            if isinstance(self._ranks.get(name), tuple):
                reason += f" with {len(self._ranks[name])} ranks"  # type: ignore[arg-type]
            misfit = None if choice is None else _misfit(choice, Geometry.of(layer))
            if misfit is not None:
                reason = misfit
            elif choice is not None:
                method: Factorization = resolve(choice.method, PACKAGE)  # type: ignore[assignment]
                spec = method.spec(Geometry.of(layer), choice.ranks, bias=bias)
                if break_even(dense_spec(layer), spec, shapes.get(name, [])):
                    choices[name] = choice
                    continue
                reason = f"{choice} would be no smaller than the layer itself"
            if name in self._ranks:
                raise CompressionError(f"{name!r}: {reason}. Use a lower rank, or leave it out.")
            kept[name] = reason
        return choices, kept

    def _choice(self, layer: nn.Module, given: Choice | tuple[int, ...] | None) -> Choice | None:
        if isinstance(given, Choice):
            return given
        geometry = Geometry.of(layer)
        for name in self.methods:
            method: Factorization = resolve(name, PACKAGE)  # type: ignore[assignment]
            if method.refuses(geometry):
                continue
            full = method.full(geometry)
            if given is not None and len(given) != len(full):
                continue
            if given is not None:
                return Choice(name, tuple(min(rank, most) for rank, most in zip(given, full, strict=True)))
            found = [
                self._ruled(method.unfoldings(Problem.of_weight(w))) for w in geometry.by_group(layer_weight(layer))
            ]
            ranks = [max(group) for group in zip(*found, strict=True)]
            fitted = [rounded(rank, most, self.multiple) for rank, most in zip(ranks, full, strict=True)]
            return Choice(name, tuple(fitted))
        return None

    def _ruled(self, matrices: Sequence[Tensor]) -> list[int]:
        assert self._rule is not None
        found = [self._rule(torch.linalg.svdvals(one), (one.shape[0], one.shape[1])) for one in matrices]
        wrong = next((one for one in found if not is_number(one) or not 0 <= one < inf), None)
        if wrong is not None:
            raise CompressionError(f"ranks: the function gave {wrong!r} for a matrix; a number of 0 or more is a rank.")
        return found


class SeparableChoice:
    """See :class:`~lightning_compress.architecture.DepthwiseSeparable` for the arguments.

    Raises:
        CompressionError: a value out of its range or an unknown name.
    """

    def __init__(
        self,
        multiplier: int | Mapping[str, int] = 1,
        *,
        order: str = "auto",
        branches: bool | str = "auto",
        data_aware: bool = True,
    ) -> None:
        if order not in ORDERS:
            raise CompressionError(f"DepthwiseSeparable(order={order!r}). {did_you_mean(order, ORDERS)}")
        if not (isinstance(branches, bool) or branches == "auto"):
            raise CompressionError(f'DepthwiseSeparable(branches={branches!r}): True, False or "auto".')
        for value in multiplier.values() if isinstance(multiplier, Mapping) else [multiplier]:
            if type(value) is not int or value < 1:
                raise CompressionError(f"DepthwiseSeparable(multiplier={value!r}): a whole number from 1.")
        if multiplier == {}:
            raise CompressionError("DepthwiseSeparable(multiplier={}) names no layer; a number is for all of them.")
        self.multiplier, self.order, self.branches, self.data_aware = multiplier, order, branches, data_aware

    def choose(self, network: nn.Module, layers: Layers, calls: Sequence[TracingInput]) -> Choices:
        """The order that loses less, at nearly equal cost; every convolution that gets smaller."""
        choices, kept = dict[str, Choice](), dict[str, str]()
        if isinstance(self.multiplier, Mapping):
            _refuse_unknown("multiplier", self.multiplier, layers)
        shapes = input_shapes(network, list(layers.calls), calls[0]) if calls else {}
        used = self.data_aware and bool(calls)
        moments = moments_of(private_copy(network), list(layers.calls), calls) if used else {}
        for name in layers.calls:
            multiplier = self.multiplier.get(name) if isinstance(self.multiplier, Mapping) else self.multiplier
            if multiplier is None:
                continue
            layer = network.get_submodule(name)
            geometry = Geometry.of(layer)
            if geometry.positions == 1:
                kept[name] = "its kernel has a single position"
                continue
            if geometry.inputs <= STEM and not isinstance(self.multiplier, Mapping):
                kept[name] = f"a stem: it reads {geometry.inputs} channels only. Say multiplier={{{name!r}: 1}}"
                continue
            orders = ORDERS[1:] if self.order == "auto" else (self.order,)
            rows = options_of(layer, moments.get(name), orders, 1, shapes.get(name, []), "params")
            fitting = [row for row in rows if row.item is not None and row.item.ranks == (multiplier,)]
            if not fitting:
                kept[name] = f"no smaller as a separable one with multiplier {multiplier}"
                continue
            best = min(fitting, key=lambda row: row.error).item
            assert best is not None
            choices[name] = self._form(layer, best, shapes.get(name, []))
        return choices, kept

    def _form(self, layer: nn.Module, choice: Choice, shapes: Sequence[tuple[int, ...]]) -> Choice:
        """As branches where that is faster."""
        geometry = Geometry.of(layer)
        if choice.method != "depthwise_first" or choice.ranks == (1,) or geometry.groups > 1 or self.branches is False:
            return choice
        side_by_side = Choice("depthwise_branches", choice.ranks)
        if self.branches is True or not shapes:
            return side_by_side
        device = layer_weight(layer).device
        value, calls = torch.randn(shapes[0], device=device), {}
        for one in (choice, side_by_side):
            method: Factorization = resolve(one.method, PACKAGE)  # type: ignore[assignment]
            module = randomize_(build_module(method.spec(geometry, one.ranks, bias=True), device=device))
            calls[one.method] = runner(module, [value])
        times = compare_latency(calls, rounds=7, clock="wall" if value.is_cuda else "cpu")
        return side_by_side if times["depthwise_branches"].ratio.median < 1 else choice


def _refuse_unknown(argument: str, names: Iterable[str], layers: Layers) -> None:
    for name in names:
        if name in layers.skipped:
            raise CompressionError(f"{argument}: {name!r} cannot be replaced: {layers.skipped[name]}.")
        if name not in layers.calls:
            hint = did_you_mean(str(name), layers.calls)
            raise CompressionError(f"{argument}: {name!r} is no layer that can be replaced. {hint}")


def _misfit(choice: Choice, geometry: Geometry) -> str | None:
    """Why a choice cannot stand in for such a layer."""
    method: Factorization = resolve(choice.method, PACKAGE)  # type: ignore[assignment]
    refused = method.refuses(geometry)
    if refused:
        return f"{choice.method} does not fit it: {refused}"
    number = len(method.full(geometry))
    return None if len(choice.ranks) == number else f"{choice} has {len(choice.ranks)} ranks, it takes {number}"


def _ranks(ranks: Any) -> tuple[Rule | None, dict[str, Choice | tuple[int, ...]]]:
    """A rule, or ranks by layer."""
    if isinstance(ranks, Mapping):
        found: dict[str, Choice | tuple[int, ...]] = {}
        for name, rank in ranks.items():
            numbers = rank.ranks if isinstance(rank, Choice) else rank if isinstance(rank, tuple | list) else (rank,)
            if not numbers or not all(is_whole(one) and one >= 1 for one in numbers):
                raise CompressionError(f"ranks: {rank!r} for {name!r}; whole numbers from 1.")
            if isinstance(rank, Choice):
                resolve(rank.method, PACKAGE)
            found[name] = rank if isinstance(rank, Choice) else tuple(numbers)
        if not found:
            raise CompressionError("LowRank(ranks={}) names no layer.")
        return None, found
    if isinstance(ranks, float):
        if not 0 < ranks < 1:
            raise CompressionError(f"LowRank(ranks={ranks}): the share of energy to keep is in (0, 1).")
        return partial(energy, share=ranks), {}
    if ranks is None:
        return None, {}
    if not callable(ranks) and ranks not in names(RULES):
        raise CompressionError(f"LowRank(ranks={ranks!r}). {did_you_mean(str(ranks), names(RULES))}")
    return resolve(ranks, RULES), {}

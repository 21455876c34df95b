"""What each layer can become, what that costs and loses, and which of it a budget for the whole network chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from lightning_compress.architecture.conversion import output_error, problems_of, replacement
from lightning_compress.architecture.costs import Clock, dense_spec, input_shapes, randomize_, spec_cost, total_cost
from lightning_compress.architecture.factorization import PACKAGE, Choice, Factorization, Ranks
from lightning_compress.architecture.geometry import Geometry, macs_in, parameters_in
from lightning_compress.architecture.layers import Layers
from lightning_compress.architecture.least_squares import Problem
from lightning_compress.errors import CompressionError
from lightning_compress.plan import ReplaceModule
from lightning_compress.plan.specs import ModuleSpec
from lightning_compress.registry import resolve
from lightning_compress.surgery.allocation import Option, allocate
from lightning_compress.surgery.compensation import write_
from lightning_compress.surgery.paired_moments import PairedMoments, moments_of
from lightning_compress.surgery.tracing import TracingInput, float32, private_copy
from lightning_compress.surgery.verification import evaluate

LOW_RANK = ("channel", "spatial", "tucker")
SEPARABLE = ("depthwise_first", "depthwise_branches", "pointwise_first")
ROUNDS, WIDE = 1, 1500
"""Rounds of fits that only rank options, and the width of a layer's input from which they do without any."""
LEAST = 1e-6
"""Losses below count as none."""
PROBES, PROBED = 4, 2
"""Options of each layer whose effect on the outputs is measured, and the batches that it is measured on."""
SLOWEST = 0.97
"""Of a layer's time: an option has to be clearly faster to count as faster."""
TIMED = 12
"""Options of a layer that are timed."""
CORRECTIONS = 6
"""How often a latency budget is corrected by what the whole network really takes."""
Options = Mapping[str, Sequence[Option[Choice]]]


def allocate_network(
    network: nn.Module,
    layers: Layers,
    calls: Sequence[TracingInput],
    budget: float,
    *,
    of: str = "params",
    methods: Sequence[str] = LOW_RANK,
    multiple: int = 1,
    data_aware: bool = True,
    runtime: str = "eager",
    batch_size: int = 1,
) -> dict[str, Choice]:
    """Which layers become what, so that the network is left with ``budget`` of its cost and loses least.

    The loss of an option is the share of its outputs' variance that a layer loses, times what a loss of that layer
    does to the network's outputs, which is measured with one option of each layer. Options that cost no less than
    the layer, in parameters, MACs or (for a latency) in time, are no options: the break-even guard.

    Args:
        network: any module.
        layers: those that may be replaced.
        calls: run it on calibration data; may be empty where parameters are counted.
        budget: share of the cost that is left, in (0, 1).
        of: "params", "macs" or "latency" (measured; the whole network is measured again, and the budget corrected).
        methods: factorisations to choose among, by name.
        multiple: ranks are multiples of this.
        data_aware: whether the conversion will be fitted to the data.
        runtime: of a latency.
        batch_size: likewise.

    Raises:
        CompressionError: the budget cannot be reached.
    """
    clock = Clock(network, calls[0], runtime=runtime, batch_size=batch_size) if of == "latency" and calls else None
    call = clock.call if clock is not None else calls[0] if calls else None
    shapes = input_shapes(network, list(layers.calls), call) if call is not None else {}
    counts = "macs" if of == "macs" else "params"
    total = total_cost(network, call, of)
    moments = moments_of(private_copy(network), list(layers.calls), calls) if calls else {}
    options: dict[str, list[Option[Choice]]] = {}
    for name in layers.calls:
        layer = network.get_submodule(name)
        used = moments.get(name) if data_aware else None
        rows = options_of(layer, used, methods, multiple, shapes.get(name, []), counts)
        rows = rows if not calls else _weighed(network, name, rows, used, calls)
        if clock is not None and rows:
            rows = _timed(clock, layer, rows, shapes[name], bias=used is not None)
        else:
            rows = [Option(spec_cost(dense_spec(layer), shapes.get(name, []), counts), 0.0), *rows]
        options[name] = rows
    kept = sum(rows[0].cost for rows in options.values())
    aim = budget * total - (total - kept)
    if clock is None:
        return _chosen(_allocated(options, aim, total, kept, budget))
    return _corrected(network, options, clock, aim, total, kept, budget, bias=data_aware)


def options_of(
    layer: nn.Module,
    moments: PairedMoments | None,
    methods: Sequence[str],
    multiple: int,
    shapes: Sequence[tuple[int, ...]],
    counts: str,
) -> list[Option[Choice]]:
    """All ways to make one layer smaller, with their cost and the share of its outputs that they lose."""
    geometry, dense = Geometry.of(layer), dense_spec(layer)
    most = parameters_in(dense), macs_in(dense, shapes)
    problems = problems_of(layer, moments)
    bias = moments is not None or layer.bias is not None
    rows: list[Option[Choice]] = []
    for name in methods:
        method: Factorization = resolve(name, PACKAGE)  # type: ignore[assignment]
        if method.refuses(geometry):
            continue
        specs = {ranks: method.spec(geometry, ranks, bias=bias) for ranks in method.options(geometry, multiple)}
        costs = {ranks: (parameters_in(spec), macs_in(spec, shapes)) for ranks, spec in specs.items()}
        smaller = [ranks for ranks, (fewer, macs) in costs.items() if fewer < most[0] and macs <= most[1]]
        for ranks, loss in zip(smaller, _losses(method, problems, smaller), strict=True):
            rows.append(Option(costs[ranks][counts == "macs"], loss, Choice(name, ranks)))
    return rows


def break_even(dense: ModuleSpec, spec: ModuleSpec, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether what stands in for a layer has fewer parameters, and no more MACs."""
    return parameters_in(spec) < parameters_in(dense) and macs_in(spec, shapes) <= macs_in(dense, shapes)


def _losses(method: Factorization, problems: Sequence[Problem], options: Sequence[Ranks]) -> list[float]:
    """Shares of all groups' outputs together."""
    energy = max(sum(problem.energy for problem in problems), 1e-300)
    lost = [0.0] * len(options)
    for problem in problems:
        rounds = ROUNDS if problem.cross.shape[1] <= WIDE else 0
        for place, share in enumerate(method.losses(problem, options, rounds)):
            lost[place] += share * problem.energy / energy
    return lost


def _weighed(
    network: nn.Module,
    name: str,
    rows: list[Option[Choice]],
    moments: PairedMoments | None,
    calls: Sequence[TracingInput],
) -> list[Option[Choice]]:
    """Losses of the layer turned into errors of the network's outputs, by what a few of the options do to those."""
    ranked = sorted((option for option in rows if option.error > LEAST), key=lambda option: option.error)
    if not ranked:
        return rows
    goals = np.geomspace(ranked[0].error, ranked[-1].error, PROBES)
    nearest = [min(ranked, key=lambda one: abs(np.log(one.error / goal))) for goal in goals]
    probes = list({option.item: option for option in nearest}.values())
    original = private_copy(network).float()
    calls = [call.map(float32) for call in calls[:PROBED]]
    expected = [evaluate(original, call) for call in calls]
    errors = []
    for probe in probes:
        assert probe.item is not None
        changed = private_copy(original)
        edit, values, _ = replacement(name, original.get_submodule(name), probe.item, moments, rounds=ROUNDS)
        edit.apply(changed)
        write_(changed, values)
        errors.append(max(output_error(expected, changed, calls), 1e-12))
    known, found = np.log([probe.error for probe in probes]), np.log(np.maximum.accumulate(errors))

    def error(option: Option[Choice]) -> float:
        """Between the probes as on a log-log plot; below them in proportion."""
        if option.error <= LEAST:
            return 0.0
        beyond = min(0.0, np.log(option.error) - known[0])
        return float(np.exp(np.interp(np.log(option.error), known, found) + beyond))

    return [replace(option, error=error(option)) for option in rows]


def _timed(
    clock: Clock,
    layer: nn.Module,
    rows: Sequence[Option[Choice]],
    shapes: Sequence[tuple[int, ...]],
    *,
    bias: bool,
) -> list[Option[Choice]]:
    """The layer as it is, then the options that are clearly faster, with their shares of the network's time."""
    geometry = Geometry.of(layer)
    best = _front(rows)
    timed = best if len(best) <= TIMED else [best[round(k * (len(best) - 1) / (TIMED - 1))] for k in range(TIMED)]
    specs = {"dense": dense_spec(layer)}
    for option in timed:
        assert option.item is not None
        method: Factorization = resolve(option.item.method, PACKAGE)  # type: ignore[assignment]
        specs[str(option.item)] = method.spec(geometry, option.item.ranks, bias=bias or layer.bias is not None)
    shares = clock.shares(specs, shapes)
    keep = Option[Choice](shares["dense"], 0.0)
    faster = [option for option in timed if shares[str(option.item)] < SLOWEST * keep.cost]
    return [keep, *(replace(option, cost=shares[str(option.item)]) for option in faster)]


def _front(rows: Sequence[Option[Choice]]) -> list[Option[Choice]]:
    """For each method the options that no cheaper one of it betters: two methods of equal cost differ in time."""
    front: list[Option[Choice]] = []
    for method in dict.fromkeys(option.item.method for option in rows if option.item is not None):
        least = float("inf")
        for option in sorted((one for one in rows if one.item and one.item.method == method), key=lambda one: one.cost):
            if option.error < least:
                least = option.error
                front.append(option)
    return front


def _allocated(options: Options, aim: float, total: float, kept: float, budget: float) -> dict[str, Option[Choice]]:
    try:
        return allocate(options, aim)
    except CompressionError as error:
        least = sum(min(option.cost for option in rows) for rows in options.values()) + total - kept
        raise CompressionError(
            f"A budget of {budget:.1%} is below the {least / total:.1%} that these layers and methods can reach. Ask "
            "for that, or allow more with targets= and methods=."
        ) from error


def _chosen(taken: Mapping[str, Option[Choice]]) -> dict[str, Choice]:
    return {name: option.item for name, option in taken.items() if option.item is not None}


def _corrected(
    network: nn.Module,
    options: Options,
    clock: Clock,
    aim: float,
    total: float,
    kept: float,
    budget: float,
    *,
    bias: bool,
) -> dict[str, Choice]:
    """Layers timed alone do not add up: the whole network is timed, and the budget corrected by what is amiss."""
    least = sum(min(option.cost for option in rows) for rows in options.values())
    met: tuple[float, dict[str, Choice]] | None = None
    fastest: tuple[float, dict[str, Choice]] | None = None
    low, high = least * (1 + 1e-9), kept
    aim = min(max(aim, low), high)
    for _ in range(CORRECTIONS):
        taken = allocate(options, aim)
        choices = _chosen(taken)
        share = clock.share_of(_shaped(network, choices, bias=bias)) if choices else 1.0
        if fastest is None or share < fastest[0]:
            fastest = share, choices
        if share <= budget:
            error = sum(option.error for option in taken.values())
            if met is None or error < met[0]:
                met = error, choices
            low = aim
        else:
            high = aim
        step = aim - (share - budget)
        aim = step if low < step < high else (low + high) / 2
        if high - low < 0.01 * kept:
            break
    assert fastest is not None
    if met is None:
        raise CompressionError(
            f"A speedup of {1 / budget:.2f}x cannot be reached: the fastest that these layers and methods allow is "
            f"{1 / fastest[0]:.2f}x in {clock.runtime}. Ask for that, or allow more with targets= and methods=."
        )
    return met[1]


def _shaped(network: nn.Module, choices: Mapping[str, Choice], *, bias: bool) -> nn.Module:
    """A copy with the replacements in place, their weights random: for the clock."""
    copy = private_copy(network)
    for name, choice in choices.items():
        layer = copy.get_submodule(name)
        method: Factorization = resolve(choice.method, PACKAGE)  # type: ignore[assignment]
        spec = method.spec(Geometry.of(layer), choice.ranks, bias=bias or layer.bias is not None)
        ReplaceModule(name, spec).apply(copy)
        randomize_(copy.get_submodule(name))
    return copy

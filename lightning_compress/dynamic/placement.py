"""Where exits go, what their heads look like, and what a sample costs that leaves there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.dynamic.routing import (
    AllOut,
    check_compaction,
    find_point,
    first_tensor,
    hooked,
    logits_of,
    points_of,
)
from lightning_compress.errors import CompressionError
from lightning_compress.measure.macs import PRODUCTS
from lightning_compress.plan import BANK, AttachExits, ExitBank, Record, pool_features
from lightning_compress.plan.exits import MAX_POOL
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import TracingInput, evaluation_mode, private_copy
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.surgery.tracing import float32
from lightning_compress.values import is_number, is_whole

ROWS = 4
"""Rows of the batch on which exits are tried out."""


@dataclass(frozen=True)
class Point:
    """A module behind which an exit could be.

    Attributes:
        name: in the network.
        shape: of one sample's features there.
        macs: multiply-accumulates of one sample up to there.
    """

    name: str
    shape: tuple[int, ...]
    macs: float


def find_points(network: nn.Module, tracing: TracingInput) -> tuple[list[Point], float]:
    """The modules that run exactly once and return features (N, ...), in the order in which they finish.

    Args:
        network: what the samples leave; not touched.
        tracing: a call of it (``tracing.module`` is "").

    Returns:
        The points, and the multiply-accumulates of one sample in all.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> points, total = find_points(net, TracingInput("", (torch.zeros(5, 4),), {}))
    >>> [(point.name, point.macs) for point in points], total
    ([('0', 12.0), ('1', 12.0), ('2', 18.0)], 18.0)
    """
    duplicate, tracing = private_copy(network), _few_rows(tracing)
    number = rows_of(tracing)
    found: list[Point] = []
    runs: dict[str, int] = {}
    flops = FlopCounterMode(display=False, custom_mapping=PRODUCTS)

    def note(name: str, module: nn.Module, args: object, output: object) -> None:
        runs[name] = runs.get(name, 0) + 1
        value = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(value, Tensor) and 2 <= value.dim() <= 5 and len(value) == number and value.is_floating_point():
            found.append(Point(name, tuple(value.shape[1:]), flops.get_total_flops() / 2 / number))

    for name, module in duplicate.named_modules():
        if name and not name.startswith(BANK):
            module.register_forward_hook(partial(note, name))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate), flops:
            tracing.run(duplicate)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return [point for point in found if runs[point.name] == 1], flops.get_total_flops() / 2 / number


def place_exits(network: nn.Module, tracing: TracingInput, shares: Sequence[float]) -> list[str]:
    """Names of modules behind which exits come closest to the given shares of the network's multiply-accumulates.

    Each is tried out: a point that something passes by (the inside of a residual block), or behind which the rows of a
    batch interact, is not taken. Of modules that end at the same place the outermost is named.

    Args:
        network: not touched.
        tracing: a call of it.
        shares: rising, in (0, 1).

    Raises:
        CompressionError: shares out of order, or fewer sound points than shares.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> place_exits(net, TracingInput("", (torch.randn(5, 4),), {}), [0.5])
    ['1']
    """
    shares = list(shares)
    if not shares or not all(is_number(share) and 0 < share < 1 for share in shares) or sorted({*shares}) != shares:
        raise CompressionError(f"shares={shares} of the multiply-accumulates: rising, each in (0, 1).")
    points, total = find_points(network, tracing)
    points = [point for point in points if 0 < point.macs < total]
    duplicate, few = private_copy(network).float(), _few_rows(tracing).map(float32)
    sound: dict[str, bool] = {}
    chosen: list[Point] = []
    for share in shares:
        left = [point for point in points if not chosen or point.macs > chosen[-1].macs]
        # of modules that end at the same place the last is the outermost
        for point in sorted(left, key=lambda one: (abs(one.macs / total - share), -points.index(one))):
            if point.name not in sound:
                sound[point.name] = _is_sound(duplicate, point, few)
            if sound[point.name]:
                chosen.append(point)
                break
    if len(chosen) < len(shares):
        raise CompressionError(
            f"The network has {len(chosen)} places where {len(shares)} exits were asked for. Give fewer shares, or "
            "name modules: exits=('layer1', ...)."
        )
    return [point.name for point in chosen]


def attach_exits(
    network: nn.Module,
    tracing: TracingInput,
    points: Sequence[str],
    *,
    classes: int | None = None,
    pool: int = 2,
    hidden: int = 0,
    confidence: str = "margin",
) -> ExitBank:
    """Heads for the exits of ``network``, fresh and outside of it; :func:`hang_on` makes them a part of it.

    A head averages maps to ``pool`` x ``pool`` positions (tokens to one), and is linear, or has one hidden layer. The
    heads' multiply-accumulates are in :attr:`ExitBank.costs`.

    Args:
        network: not touched; that rows can leave at the points is proved on a copy.
        tracing: a call of it.
        points: names of modules, in any order.
        classes: of the network; None takes its outputs.
        pool: at least 1.
        hidden: neurons of a hidden layer; 0 for none.
        confidence: what the thresholds will be meant for.

    Raises:
        CompressionError: no such module; rows cannot leave there; heads that cannot be built.
    """
    check_head(pool, hidden)
    refuse_text(points, "exits")
    few = _few_rows(tracing)
    known, total = find_points(network, tracing)
    by_name = {point.name: point for point in known}
    for name in points:
        find_point(network, name)
        if name not in by_name:
            raise CompressionError(
                f"{name!r} cannot have an exit: it runs more or less than once, or returns no features (N, ...)."
            )
    if len(points) != len({*points}) or not points:
        raise CompressionError(f"exits={tuple(points)}: at least one, none twice.")
    ordered = sorted((by_name[name] for name in points), key=lambda one: known.index(one))
    duplicate = private_copy(network)
    with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate):
        classes = classes or logits_of(few.run(duplicate)).shape[1]
    anchor = next(one for one in network.parameters() if one.is_floating_point())
    heads = [head(point.shape, classes, pool, hidden) for point in ordered]
    bank = ExitBank([point.name for point in ordered], [pool] * len(ordered), confidence, heads)
    spent = torch.tensor([head_macs(one) for one in heads], dtype=torch.float64).cumsum(0)
    bank.costs[:-1] = torch.tensor([point.macs for point in ordered], dtype=torch.float64) + spent
    bank.costs[-1] = total + spent[-1]
    bank = bank.to(device=anchor.device)
    bank.heads.to(dtype=anchor.dtype)  # the costs stay exact
    prove_exits(network, bank, few)
    return bank


def prove_exits(network: nn.Module, bank: ExitBank, tracing: TracingInput) -> None:
    """See on copies that rows can leave at the exits of ``bank``; see
    :func:`~lightning_compress.dynamic.routing.check_compaction`.
    """
    duplicate, heads = private_copy(network).float(), private_copy(bank).float()
    assert isinstance(heads, ExitBank)
    few = _few_rows(tracing).map(float32)
    with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate), evaluation_mode(heads):
        check_compaction(duplicate, heads, few.args, few.kwargs)


def hang_on(module: nn.Module, place: str, bank: ExitBank) -> ExitBank:
    """Make ``bank`` a part of ``module``, by an edit of its Plan; returns the one that is there now."""
    edit = edit_of(place, bank)
    Record.of(module).apply(edit)
    there = module.get_submodule(f"{place}.{BANK}" if place else BANK)
    assert isinstance(there, ExitBank)
    there.load_state_dict(bank.state_dict())
    return there


def edit_of(place: str, bank: ExitBank) -> AttachExits:
    """The edit that hangs such heads on the module called ``place``."""
    specs = tuple(_spec_of(one) for one in bank.heads)
    label = f"{len(specs)} early exits"
    return AttachExits(place, tuple(bank.points), tuple(bank.pools), bank.confidence, specs, label)


def head(shape: Sequence[int], classes: int, pool: int, hidden: int = 0) -> nn.Module:
    """A head for features of this shape (of one sample), with fresh weights.

    >>> head((8, 6, 6), 10, pool=2)
    Linear(in_features=32, out_features=10, bias=True)
    """
    width = _pooled(shape, pool)[0]
    if not hidden:
        return nn.Linear(width, classes)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def check_head(pool: Any, hidden: Any) -> None:
    """Refuse heads that cannot be built.

    Raises:
        CompressionError: no whole numbers, or out of range.
    """
    for value, what, low, high in ((pool, "pool", 1, MAX_POOL), (hidden, "hidden", 0, 2**20)):
        if not is_whole(value) or not low <= value <= high:
            raise CompressionError(f"{what}={value!r} is no whole number in [{low}, {high}].")


def head_macs(module: nn.Module) -> int:
    """Multiply-accumulates of a head, for one sample.

    >>> head_macs(head((8,), 10, pool=1, hidden=4))
    72
    """
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))


def stops_at(network: nn.Module, bank: ExitBank, exit_: int) -> Callable[..., Tensor]:
    """A call of the network that goes no further than exit ``exit_`` (or to the end), for all rows."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        answer: list[Tensor] = []

        def look(number: int, output: Any) -> None:
            answer[:] = [bank.logits(number, first_tensor(output))]
            if number == exit_:
                raise AllOut

        with hooked(points_of(network, bank), look):
            try:
                return logits_of(network(*args, **kwargs))
            except AllOut:
                return answer[0]

    return run


def _spec_of(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, nn.Sequential):
        return {"type": "Sequential", "children": [[name, _spec_of(one)] for name, one in module.named_children()]}
    if isinstance(module, nn.Linear):
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {"type": "Linear", "arguments": {**sizes, "bias": module.bias is not None}}
    return {"type": type(module).__name__}


def _pooled(shape: Sequence[int], pool: int) -> tuple[int, ...]:
    return tuple(pool_features(torch.zeros(1, *shape), pool).shape[1:])


def _is_sound(duplicate: nn.Module, point: Point, few: TracingInput) -> bool:
    bank = ExitBank([point.name], [1], "margin", [nn.Linear(_pooled(point.shape, 1)[0], 2)])
    try:
        with torch.no_grad(), isolated_random_states(), evaluation_mode(duplicate):
            bank.heads[0] = nn.Linear(_pooled(point.shape, 1)[0], logits_of(few.run(duplicate)).shape[1])
            check_compaction(duplicate, bank, few.args, few.kwargs)
    except CompressionError:
        return False
    return True


def rows_of(tracing: TracingInput) -> int:
    """Samples in the batch of a call.

    Raises:
        CompressionError: there is no batch.
    """
    tensor = next((one for one in [*tracing.args, *tracing.kwargs.values()] if isinstance(one, Tensor)), None)
    if tensor is None or not tensor.dim():
        raise CompressionError("Early exits need a network that is called with a batch of samples.")
    return len(tensor)


def _few_rows(tracing: TracingInput) -> TracingInput:
    """The call with a batch of a few rows; fewer are repeated."""
    number = rows_of(tracing)
    if not number:
        raise CompressionError("Exits are tried out on a batch of samples; this one is empty.")

    def few(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != number:
            return tensor
        times = -(-ROWS // number)
        return torch.cat([tensor] * times)[:ROWS] if times > 1 else tensor[:ROWS]

    return tracing.map(few)

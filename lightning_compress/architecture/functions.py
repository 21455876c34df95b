"""Conversions as plain functions on any module; no Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lightning_compress.architecture.choosing import LowRankChoice, SeparableChoice, Settings
from lightning_compress.architecture.conversion import Conversion, apply_, convert
from lightning_compress.architecture.factorization import Choice
from lightning_compress.architecture.layers import find_layers
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.tracing import TracingInput, tensors_in


def low_rank_(
    network: nn.Module,
    budget: float | None = None,
    *,
    of: str = "params",
    speedup: float | None = None,
    ranks: Any = None,
    methods: Sequence[str] | None = None,
    data: Iterable[Any] | None = None,
    data_aware: bool = True,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    round_to: int | str = "auto",
    recalibrate: bool | str = "auto",
    runtime: str = "eager",
    batch_size: int = 1,
) -> Conversion:
    """Replace trained layers by factored ones, in place and without any training.

    The arguments are those of :class:`~lightning_compress.architecture.LowRank`. ``data`` are batches on the network's
    device (its input, or tuples that begin with it), a few hundred samples without labels; without them weights are
    fitted to weights.

    Returns:
        What was done; prints as a table on a rich console.

    Raises:
        CompressionError: see :class:`~lightning_compress.architecture.LowRank`; the network is as it was.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    >>> conversion = low_rank_(net, 0.5, data=[torch.randn(64, 32)])
    >>> sum(parameter.numel() for parameter in net.parameters()) <= 0.5 * 2112
    True
    """
    settings = LowRankChoice(
        budget,
        of=of,
        speedup=speedup,
        ranks=ranks,
        methods=methods,
        round_to=round_to,
        data_aware=data_aware,
        runtime=runtime,
        batch_size=batch_size,
    )
    return _convert(network, settings, data, targets, exclude, recalibrate)


def separable_(
    network: nn.Module,
    multiplier: int | Mapping[str, int] = 1,
    *,
    order: str = "auto",
    branches: bool | str = "auto",
    data: Iterable[Any] | None = None,
    data_aware: bool = True,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    recalibrate: bool | str = "auto",
) -> Conversion:
    """Replace trained convolutions by depthwise separable ones, in place and without any training.

    The arguments are those of :class:`~lightning_compress.architecture.DepthwiseSeparable`; ``data`` as in
    :func:`low_rank_`.

    Returns:
        What was done; prints as a table on a rich console.

    Raises:
        CompressionError: see :class:`~lightning_compress.architecture.DepthwiseSeparable`.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.ReLU())
    >>> separable_(net, order="depthwise_first").layers[0].parameters
    (4608, 656)
    """
    settings = SeparableChoice(multiplier, order=order, branches=branches, data_aware=data_aware)
    return _convert(network, settings, data, targets, exclude, recalibrate)


def _convert(
    network: nn.Module,
    settings: Settings,
    data: Iterable[Any] | None,
    targets: Sequence[str] | None,
    exclude: Sequence[str],
    recalibrate: bool | str,
) -> Conversion:
    calls = calls_of(check_data(data))
    with isolated_random_states():
        layers = find_layers(network, targets, exclude, calls[0] if calls else None)
        choices, skipped = settings.choose(network, layers, calls)
        aware = settings.data_aware
        conversion = convert(network, choices, calls, data_aware=aware, times=layers.calls, recalibrate=recalibrate)
    apply_(network, conversion)
    return replace(conversion, skipped={**layers.skipped, **skipped})


def check_data(data: Any) -> Any:
    """Calibration batches, as they are.

    Raises:
        CompressionError: a single batch in their place, or nothing that gives batches.
    """
    if isinstance(data, Tensor | dict):
        raise CompressionError("data= is one batch; write data=[batch].")
    if data is not None and (isinstance(data, str) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__"))):
        raise CompressionError(f"data={data!r}: batches, such as a DataLoader or a list of tensors.")
    return data


def calls_of(data: Iterable[Any] | None, module: str = "") -> list[TracingInput]:
    """A call of the submodule ``module`` for each batch: inputs, tuples that begin with them, or keyword arguments.

    Raises:
        CompressionError: a batch without samples, or with values that are not finite.
    """
    calls = []
    for number, batch in enumerate(() if data is None else data):
        if isinstance(batch, dict):
            call = TracingInput(module, (), batch)
        else:
            call = TracingInput(module, tuple(batch[:1]) if isinstance(batch, tuple | list) else (batch,), {})
        inputs = list(tensors_in((call.args, call.kwargs)))
        if not inputs or any(one.dim() and not len(one) for one in inputs):
            raise CompressionError(f"Batch {number} of data= has no samples.")
        if not all(bool(one.isfinite().all()) for one in inputs):
            raise CompressionError(f"Batch {number} of data= has values that are not finite.")
        calls.append(call)
    return calls


__all__ = ["Choice", "calls_of", "check_data", "low_rank_", "separable_"]

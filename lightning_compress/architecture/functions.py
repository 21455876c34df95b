"""Conversions as plain functions on any module; no Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_compress.architecture.choosing import LowRankChoice, SeparableChoice, Settings
from lightning_compress.architecture.conversion import Conversion, apply_, convert
from lightning_compress.architecture.factorization import Choice
from lightning_compress.architecture.layers import find_layers
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery.tracing import TracingInput


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
    calls = calls_of(data)
    with isolated_random_states():
        layers = find_layers(network, targets, exclude, calls[0] if calls else None)
        choices, skipped = settings.choose(network, layers, calls)
        aware = settings.data_aware
        conversion = convert(network, choices, calls, data_aware=aware, times=layers.calls, recalibrate=recalibrate)
    apply_(network, conversion)
    return replace(conversion, skipped={**layers.skipped, **skipped})


def calls_of(data: Iterable[Any] | None, module: str = "") -> list[TracingInput]:
    """A call of the submodule ``module`` for each batch: inputs, tuples that begin with them, or keyword arguments."""
    calls = []
    for batch in data or ():
        if isinstance(batch, dict):
            calls.append(TracingInput(module, (), batch))
        else:
            calls.append(TracingInput(module, (batch[0] if isinstance(batch, tuple | list) else batch,), {}))
    return calls


__all__ = ["Choice", "calls_of", "low_rank_", "separable_"]

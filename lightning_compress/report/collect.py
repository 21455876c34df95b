"""What a report says of a network, of a Journal and of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.measure import macs_by_module, measure
from lightning_compress.measure.cost import ExampleInput
from lightning_compress.plan import CHECKPOINT_KEY, Journal
from lightning_compress.report.report import Layer, Network
from lightning_compress.report.values import histogram, width_of

PACKAGES = ("lightning-compress", "torch", "lightning", "numpy")


def collect_layers(
    module: nn.Module, *, macs: Mapping[str, int] | None = None, bits: Mapping[str, int] | None = None
) -> tuple[Layer, ...]:
    """The weight tensors of ``module``: all parameters of two dimensions and more, in its order.

    Args:
        module: the network.
        macs: multiply-accumulates by name of a module, where they are known.
        bits: widths of weights by name of a parameter, where quantization has set them.

    >>> [layer.name for layer in collect_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)))]
    ['0', '2']
    """
    named = {name: tensor.detach() for name, tensor in module.named_parameters() if tensor.dim() > 1}
    short = short_names(list(named))
    macs, bits = macs or {}, bits or {}
    return tuple(
        Layer(
            name=short[name],
            shape=tuple(tensor.shape),
            weights=tensor.numel(),
            kept=int(tensor.count_nonzero()),
            parameter=name,
            bytes=tensor.nbytes,
            macs=macs.get(name.rpartition(".")[0]),
            bits=bits.get(name, width_of(tensor)),
            values=histogram(tensor),
        )
        for name, tensor in named.items()
    )


def collect_network(
    module: nn.Module,
    example_input: ExampleInput,
    *,
    stage: str,
    epochs: int,
    metrics: Mapping[str, float],
    bits: Mapping[str, int] | None = None,
) -> Network:
    """A network as it is now; ``example_input`` is one sample, for the cost, ``bits`` as in :func:`collect_layers`."""
    layers = collect_layers(module, macs=macs_by_module(module, example_input), bits=bits)
    return Network(stage, epochs, asdict(measure(module, example_input)), dict(metrics), layers)


def quantized_bits(checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """Bits of each weight that a :class:`~lightning_compress.QuantizationAwareTraining` noted in a checkpoint.

    >>> quantized_bits({"state_dict": {}})
    {}
    """
    states = (checkpoint.get(CHECKPOINT_KEY) or {}).get("quantizers", {}).values()
    quantizers = (item for state in states if state for item in state.get("weights", {}).items())
    rounded = ((name, state) for name, state in quantizers if state.get("enabled") or state.get("ready"))
    return {name: int(state["bits"]) for name, state in rounded}


@cache
def find_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def collect_environment() -> dict[str, str]:
    """What a figure depends on: versions, the commit where there is one, platform, processors."""
    versions = {name: version(name) for name in PACKAGES if name != "lightning-compress"}
    from lightning_compress import __version__

    commit = find_commit()
    return {
        "lightning-compress": __version__,
        **({} if commit is None else {"commit": commit}),
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(aliased=True, terse=True),
        "processors": str(os.cpu_count()),
    }


def to_report_entries(journal: Journal | Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """The Journal's entries as mappings of primitives."""
    return tuple(
        {"kind": e.kind, "text": e.text, "epoch": e.epoch, "step": e.step, "data": dict(e.data)} for e in journal
    )


def short_names(names: list[str]) -> dict[str, str]:
    """Names without what they all begin with, and without a last ``.weight``.

    >>> short_names(["network.fc1.weight", "network.fc2.weight"])
    {'network.fc1.weight': 'fc1', 'network.fc2.weight': 'fc2'}
    """
    parts = [name.removesuffix(".weight").split(".") for name in names]
    common = 0
    while parts and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return {name: ".".join(p[common:]) for name, p in zip(names, parts, strict=True)}

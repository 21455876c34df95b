"""What a report says of one fit: the network in its Session, its surroundings, its file."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.artifact import save_compressed, unpack_state
from lightning_compress.artifact.accounting import account
from lightning_compress.errors import CompressionError
from lightning_compress.measure import macs_by_module, measure
from lightning_compress.measure.cost import ExampleInput
from lightning_compress.plan import Journal, explain
from lightning_compress.quantization import QuantizationAwareTraining
from lightning_compress.report.collect import collect_environment, collect_layers, quantized_bits, to_report_entries
from lightning_compress.report.report import FileResult, Network, Report, SizeStep
from lightning_compress.training import Session

ENDING = ".lcz"


def check_file_name(name: str | None) -> None:
    """Refuse a name that is no name of a compressed file.

    Raises:
        CompressionError: another ending, or a folder in it.
    """
    if name is not None and (not str(name).endswith(ENDING) or "/" in str(name)):
        raise CompressionError(f"file={name!r}: the name of a file in the report's folder that ends with {ENDING}.")


def fit_network(
    session: Session, stage: str, epochs: int, metrics: Mapping[str, float], miss: Callable[[str], None]
) -> Network:
    """The network of a running fit as it is now; what cannot be counted is told to ``miss``."""
    module = session.module
    parameters = list(module.parameters())
    cost = {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "nonzero_parameters": sum(int(parameter.detach().count_nonzero()) for parameter in parameters),
        "dense_bytes": sum(tensor.nbytes for tensor in module.state_dict().values() if isinstance(tensor, Tensor)),
    }
    macs: dict[str, int] = {}
    try:
        part, name, example = _one_sample(session)
        found = measure(part, example)
        cost |= {"macs": found.macs, "peak_memory_bytes": found.peak_memory_bytes}
        macs = {f"{name}.{key}".strip("."): value for key, value in macs_by_module(part, example).items()}
    except Exception as error:  # whatever a user's forward may raise: the report then says less
        miss(f"Multiply-accumulates and memory: {error}")
    layers = collect_layers(module, macs=macs, bits=_bits(session))
    return Network(stage, epochs, cost, {name: float(value) for name, value in metrics.items()}, layers)


def _one_sample(session: Session) -> tuple[nn.Module, str, ExampleInput]:
    """The part of the module that is called, its name, and what it is called with, cut to one sample."""
    call = session.tracing.map(lambda tensor: tensor[:1] if tensor.dim() else tensor)
    if call.args and call.kwargs:
        raise CompressionError("the network is called with positional and named arguments; set example_input_array.")
    return session.module.get_submodule(call.module), call.module, call.kwargs or call.args


def _bits(session: Session) -> dict[str, int]:
    """Widths that quantization has given to weights."""
    checkpoint: dict[str, Any] = {}
    for callback in session.callbacks:
        if isinstance(callback, QuantizationAwareTraining):
            callback.amend_checkpoint(checkpoint)
    return quantized_bits(checkpoint)


def write_file(module: nn.Module, path: Path, before: Network, after: Network) -> FileResult:
    """Write the network's file, read it back, and account for its bytes.

    Raises:
        CompressionError: what is read back is not what was written.
    """
    size = save_compressed(module, path).bytes
    read, written = unpack_state(path), module.state_dict()
    if not all(torch.equal(tensor, written[name].cpu()) for name, tensor in read.items()):
        raise CompressionError(f"{path}: what is read back is not what was written. Please report this.")
    dense = before.cost["parameters"] * 4
    steps = (SizeStep("before, fp32", dense, False), SizeStep(path.name, size, True))
    layers = tuple(asdict(row) for row in account(module) if row.weights > 1)
    return FileResult(path.name, size, dense / size, steps, layers, dict(after.metrics))


def fit_report(
    session: Session, networks: tuple[Network, Network], *, monitor: str, mode: str, first_entry: int
) -> Report:
    """The report of the Session's fit, from the Journal's entry ``first_entry`` on."""
    journal = Journal(tuple(islice(session.journal, first_entry, None)))
    start = {"stage": "fit", "epochs": session.time}
    entries = [{"kind": "start", "text": "the fit begins", "epoch": 0.0, "step": 0, "data": start}]
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    return Report(
        recipe=type(session.module).__name__,
        seed=int(seed) if seed.isdigit() else None,
        monitor=monitor,
        mode=mode,
        networks=networks,
        journal=(*entries, *to_report_entries(journal)),
        plan=tuple(line.partition(". ")[2] for line in explain(session.plan).splitlines()[1:]),
        environment=collect_environment(),
        config={},
        command=shlex.join([Path(sys.executable).name, *sys.argv]),
    )


def describe_fit(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What can be seen of a fit's configuration: arguments of callbacks and loaders are nowhere to be read."""
    return {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "hyper-parameters": {str(name): _primitive(value) for name, value in dict(module.hparams).items()},
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],  # type: ignore[attr-defined]
        "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "max_epochs": trainer.max_epochs,
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
    }


def _primitive(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)

"""The compressed file of a run: written, read back into a fresh network, evaluated, and accounted for step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from lightning_compress.app.run_folder import RunFolder, write_text
from lightning_compress.app.stages import Stage, evaluate, load_network, module_config
from lightning_compress.artifact import load_compressed, save_compressed
from lightning_compress.artifact.accounting import account
from lightning_compress.errors import CompressionError
from lightning_compress.report import FileResult, Network, SizeStep, file_from_state
from lightning_compress.report.fit import ENDING


def write_file(
    config: DictConfig, stages: Sequence[Stage], folder: RunFolder, networks: Sequence[Network]
) -> FileResult:
    """Write the last network's file and read it back.

    Raises:
        CompressionError: what is read back scores otherwise than what was written.
    """
    place = folder.path / f"{config.file}.json"
    if place.exists():
        return file_from_state(json.loads(place.read_text()))
    path, last = folder.path / config.file, networks[-1]
    module = _network(config, stages[-1], folder)
    summary = save_compressed(module, path)
    fresh: L.LightningModule = instantiate(module_config(config, stages[-1]))
    metrics = evaluate(config, load_compressed(path, into=fresh), instantiate(config.data))
    if metrics != dict(last.metrics):
        raise CompressionError(f"{path} scores {metrics} where the network scored {dict(last.metrics)}.")
    huffman = save_compressed(module, folder.path / f".huffman{ENDING}", coder="huffman").bytes
    (folder.path / f".huffman{ENDING}").unlink()
    dense = networks[0].cost["parameters"] * 4
    steps = (
        SizeStep(f"{stages[0].name}, fp32", dense, False),
        *_counted(config, stages[1:], folder),
        SizeStep("Huffman-coded", huffman, True),
        SizeStep(str(config.file), summary.bytes, True),
    )
    layers = tuple(asdict(row) for row in account(module) if row.weights > 1)
    result = FileResult(str(config.file), summary.bytes, dense / summary.bytes, steps, layers, metrics)
    write_text(place, json.dumps(asdict(result), indent=1))
    return result


def _counted(config: DictConfig, stages: Sequence[Stage], folder: RunFolder) -> Iterator[SizeStep]:
    for stage in stages:
        rows = account(_network(config, stage, folder), "deflate")
        yield SizeStep(f"after {stage.name!r}", sum(row.counted_bytes for row in rows), False)


def _network(config: DictConfig, stage: Stage, folder: RunFolder) -> nn.Module:
    module: L.LightningModule = instantiate(module_config(config, stage))
    load_network(module, folder.stage(stage.name).final)
    return module

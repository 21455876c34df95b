"""Latency of the networks that runs have left, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_compress.app.stages import load_network, module_config, read_stages
from lightning_compress.measure import compare_latency

ROUNDS = 50


def measure_runs(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[float]:
    """Milliseconds for one sample in eager mode on the processor, one thread: the median of each run's last network.

    All are measured in turn, round by round, so that what else the machine does falls on all alike.

    Args:
        runs: folder and resolved configuration of each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = {str(folder): _call(folder, config) for folder, config in runs}
        rows = {row.name: row for row in compare_latency(calls, rounds=ROUNDS, clock="wall").rows}
    finally:
        torch.set_num_threads(before)
    return [rows[str(folder)].milliseconds.median for folder, _ in runs]


def _call(folder: Path, values: Mapping[str, Any]) -> Any:
    config = OmegaConf.create(dict(values))
    stage = read_stages(config)[-1]
    module: L.LightningModule = instantiate(module_config(config, stage))
    load_network(module, folder / stage.name / "final.ckpt")
    data: L.LightningDataModule = instantiate(config.data)
    data.prepare_data()
    data.setup("validate")
    sample = next(iter(data.val_dataloader()))[0][:1]
    return torch.inference_mode()(partial(module.eval(), sample))

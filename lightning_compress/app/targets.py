"""A size that is asked for, or a drop that is allowed: the sparsity and the price of a bit that keep to it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_compress.app.run_folder import RunFolder, StageFolder, write_text
from lightning_compress.app.stages import Stage, load_network, module_config
from lightning_compress.artifact import save_compressed
from lightning_compress.errors import CompressionError
from lightning_compress.quantization import share_weights, solve_rate
from lightning_compress.report import FileResult, Network
from lightning_compress.surgery import find_weights

UNITS = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}
KEPT = (0.005, 0.95)
"""Shares of the weights between which the one to keep is sought."""

RATES = 30.0
"""So many times less or more than the recipe's rate is tried."""

PRECISION = 0.15
"""Relative; of the share that is kept and of the rate."""

Trial = Callable[[DictConfig, Stage, StageFolder, str], Network]
"""Runs, or reads, a stage under a configuration in a folder, for a value that the display shows."""


@dataclass(frozen=True)
class Target:
    """What the file, or its accuracy, has to keep to.

    Attributes:
        size: most bytes of the file; None: any.
        max_drop: by how much the monitored metric may be worse than the first network's, on validation; None: any.
    """

    size: int | None = None
    max_drop: float | None = None

    @property
    def asked(self) -> str:
        """In words."""
        if self.size is not None:
            return f"asked for at most {self.size:,} bytes"
        return f"asked for a drop of at most {self.max_drop:g}"


def read_target(config: DictConfig, stages: Sequence[Stage]) -> Target | None:
    """The target of a run, if it has one.

    Raises:
        CompressionError: no number, both at once, or a recipe in which nothing can be solved for.
    """
    size, drop = config.target.size, config.target.max_drop
    if size is None and drop is None:
        return None
    if size is not None and drop is not None:
        raise CompressionError(f"target.size={size} and target.max_drop={drop}: one follows from the other; give one.")
    knobs = [knob for stage in stages for knob in ("sparsity", "rate") if _holder(config, stage, knob) is not None]
    if config.file is None or knobs != ["sparsity", "rate"]:
        raise CompressionError(
            "A target needs a file, a stage with a callback that has a sparsity, and a later one with a callback that "
            "has a rate: recipe=deep_compression."
        )
    if drop is not None and (isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < inf):
        raise CompressionError(f"target.max_drop={drop!r} is not a number of at least 0, in units of {config.monitor}.")
    return Target(None if size is None else parse_size(size), drop)


def parse_size(text: object) -> int:
    """Bytes from a number, or a number with B, kB, MB, KiB or MiB.

    Raises:
        CompressionError: neither.

    >>> parse_size("50kB"), parse_size(1500)
    (50000, 1500)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text))
    if found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise CompressionError(f"target.size={text!r} is no size: a number of bytes, or such as 50kB.")
    return int(float(found[1]) * UNITS[found[2]])


class TargetSearch:
    """Finds the values stage by stage, by bisection; trials lie in ``target/`` and are not run twice.

    For a drop, sparsity is the largest at which the pruned network has lost no more than half of it, the rate the
    largest at which the last network has lost no more than all of it. For a size, sparsity is that at which the first
    network's largest weights, shared by k-means and coded, fit without any training; the rate is the smallest at which
    the trained network's file does.

    Args:
        target: what to keep to.
        folder: of the run.
        trial: runs a stage.
    """

    def __init__(self, target: Target, folder: RunFolder, trial: Trial) -> None:
        self._target, self._folder, self._trial = target, folder, trial
        self.found: dict[str, float] = {}

    def settle(self, config: DictConfig, stage: Stage, networks: Sequence[Network], start: Path | None) -> DictConfig:
        """The configuration with which ``stage`` keeps to the target; its trial becomes the stage.

        Raises:
            CompressionError: out of reach.
        """
        for knob in ("sparsity", "rate"):
            holder = _holder(config, stage, knob)
            if holder is not None:
                place = self._folder.path / "target" / f"{knob}.json"
                if not place.exists():
                    value = self._solve(knob, holder, config, stage, networks, start)
                    place.parent.mkdir(exist_ok=True)
                    write_text(place, json.dumps(value))
                self.found[knob] = json.loads(place.read_text())
                config = _with(config, holder, knob, self.found[knob])
                tried = self._place(knob, self.found[knob]).path
                if tried.exists() and not self._folder.stage(stage.name).path.exists():
                    shutil.copytree(tried, self._folder.stage(stage.name).path)
        return config

    def entry(self, networks: Sequence[Network], file: FileResult, monitor: str, mode: str) -> dict[str, Any]:
        """What was asked for and reached, as an entry of the report's journal."""
        drop = _drop(networks[0], networks[-1], monitor, mode)
        values = ", ".join(f"{knob} {value:.4g}" for knob, value in self.found.items())
        text = f"target: {self._target.asked}, reached {file.bytes:,} bytes and a drop of {drop:.4g} with {values}"
        asked = self._target.size if self._target.size is not None else self._target.max_drop
        reached = file.bytes if self._target.size is not None else drop
        data = {"asked": asked, "reached": reached, **self.found}
        return {"kind": "finish", "text": text, "epoch": 0.0, "step": 0, "data": data}

    def _solve(
        self, knob: str, holder: str, config: DictConfig, stage: Stage, networks: Sequence[Network], start: Path | None
    ) -> float:
        first, limit = networks[0], self._target.max_drop

        def run(value: float) -> Network:
            place = self._place(knob, value)
            return self._trial(_with(config, holder, knob, value), stage, place, f"{value:.3g}")

        def lost(value: float) -> float:
            try:
                return _drop(first, run(value), config.monitor, config.mode)
            except CompressionError:  # a layer would be left with nothing
                return float("inf")

        if knob == "sparsity":
            low, high = KEPT
            if limit is not None:
                kept = solve_rate(lambda kept: lost(1 - kept), limit / 2, low=low, high=high, precision=PRECISION)
            else:
                sizes = _sizes_without_training(config, stage, holder, start)
                kept = solve_rate(sizes, self._size, rising=True, low=low, high=high, precision=0.01)
            return 1 - kept
        rate = config.callbacks[holder].rate
        span = {"low": rate / RATES, "high": rate * RATES, "precision": PRECISION}
        if limit is not None:
            return solve_rate(lost, limit, rising=True, **span)

        def size(value: float) -> float:
            run(value)
            return _bytes(_load(config, stage, self._place(knob, value).final))

        return solve_rate(size, self._size, **span)

    @property
    def _size(self) -> int:
        assert self._target.size is not None
        return self._target.size

    def _place(self, knob: str, value: float) -> StageFolder:
        return StageFolder(self._folder.path / "target" / f"{knob}={value:.6g}")


def _holder(config: DictConfig, stage: Stage, knob: str) -> str | None:
    """The stage's callback that has a value for ``knob``."""
    return next((name for name in stage.callbacks if config.callbacks[name].get(knob) is not None), None)


def _with(config: DictConfig, holder: str, knob: str, value: float) -> DictConfig:
    changed, former = config.copy(), config.callbacks[holder]
    OmegaConf.update(changed, f"callbacks.{holder}.{knob}", value)
    if knob == "rate" and former.get("first_rate") is not None:  # the price that it rises from, in proportion
        OmegaConf.update(changed, f"callbacks.{holder}.first_rate", former.first_rate * value / former.rate)
    return changed


def _drop(first: Network, last: Network, monitor: str, mode: str) -> float:
    change = first.metrics[monitor] - last.metrics[monitor]
    return change if mode == "max" else -change


def _load(config: DictConfig, stage: Stage, path: Path) -> L.LightningModule:
    module: L.LightningModule = instantiate(module_config(config, stage))
    load_network(module, path)
    return module


def _bytes(module: torch.nn.Module) -> int:
    with TemporaryDirectory() as folder:
        return save_compressed(module, Path(folder, "model.lcz")).bytes


def _sizes_without_training(
    config: DictConfig, stage: Stage, holder: str, start: Path | None
) -> Callable[[float], float]:
    """The size of the file from the share of weights that is kept."""
    assert start is not None
    callback = config.callbacks[holder]
    clusters = max(int(c.clusters) for c in config.callbacks.values() if c.get("rate") is not None)

    @torch.no_grad()
    def size(kept: float) -> float:
        module = _load(config, stage, start)
        weights = list(find_weights(module, callback.targets, callback.exclude).values())
        scores = torch.cat([weight.abs().flatten() for weight in weights])
        edge = scores.topk(max(round(kept * len(scores)), 1)).values[-1]
        for weight in weights:
            weight.mul_(weight.abs() >= edge)
        for parameter in module.parameters():
            parameter.copy_(share_weights(parameter, clusters).values)
        return _bytes(module)

    return size

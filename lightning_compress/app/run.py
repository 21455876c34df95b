"""One run of the command: its stages, then its report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from lightning_compress.app.compressed_file import write_file
from lightning_compress.app.dry_run import dry_run
from lightning_compress.app.loggers import GuardedLogger, build_loggers
from lightning_compress.app.progress import StageDisplay, status_text
from lightning_compress.app.publish import close, publish
from lightning_compress.app.quiet import quiet
from lightning_compress.app.report_parts import check_report, complete
from lightning_compress.app.run_folder import RunFolder, StageFolder, relative, write_text
from lightning_compress.app.stages import Stage, check_values, read_stages, run_stage
from lightning_compress.app.sweep import run_recorded
from lightning_compress.app.targets import TargetSearch, read_target
from lightning_compress.plan import CHECKPOINT_KEY, Journal, explain, read_checkpoint
from lightning_compress.report import (
    Network,
    Report,
    collect_environment,
    draw_figures,
    file_layer_table,
    file_step_table,
    layer_table,
    network_table,
    render_page,
    to_report_entries,
)
from lightning_compress.report.fit import check_file_name

NOT_THE_RUN = ("fresh", "sweep", "dry_run", "search")
"""Keys that say how to begin, not what to do."""


def run(config: DictConfig) -> None:
    """Run, or go on with, what ``config`` describes, in the folder that Hydra gives it; print the result.

    Raises:
        CompressionError: something asked for cannot be done; nothing that was there is lost.
    """
    if config.dry_run:
        dry_run(config, Path(HydraConfig.get().runtime.output_dir), Console())
    elif config.sweep is not None:
        run_recorded(config, _run, resolved(config))
    else:
        _run(config)


def run_quietly(config: DictConfig) -> Report:
    """Run, or read, a trial of a search; nothing is printed."""
    return _run(config, Console(quiet=True), wait=True)


def run_first_stages(config: DictConfig, path: Path, number: int) -> None:
    """The first stages alone, without a report: what trials have in common."""
    folder = RunFolder(path)
    with quiet(), folder.lock(), _threads(config.threads):
        _run_stages(config, read_stages(config)[:number], folder, (), Console())


def _run(config: DictConfig, console: Console | None = None, *, wait: bool = False) -> Report:
    console = console or Console()
    stages = read_stages(config)
    check_values(config)
    check_file_name(config.file)
    check_report(config)
    read_target(config, stages)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    with quiet(), folder.lock(wait=wait or config.sweep is not None), _threads(config.threads):
        if config.fresh:
            folder.clear()
        folder.claim(resolved(config))
        if config.sweep is not None:
            console.print(Text(relative(folder.path), style="dim"), soft_wrap=True)
        finished = folder.report.exists()
        if not finished:
            _execute(config, stages, folder, console)
        report = Report.from_json(folder.report.read_text())
        _show(report, folder, console, finished=finished)
    return report


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """As many threads as asked for; another number may add up in another order, and give other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as primitives, without the keys that say how to begin."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in NOT_THE_RUN}


def _execute(config: DictConfig, stages: Sequence[Stage], folder: RunFolder, console: Console) -> None:
    loggers = build_loggers(config, folder.path, resolved(config))
    succeeded = False
    try:
        networks, search = _run_stages(config, stages, folder, loggers, console)
        model = folder.stage(stages[-1].name).final
        file = write_file(config, stages, folder, networks) if config.file is not None else None
        report = replace(_report(config, networks, model), file=file)
        if search is not None and file is not None:
            end = search.entry(networks, file, config.monitor, config.mode)
            report = replace(report, journal=(*report.journal, end))
        report = complete(report, config, stages, folder)
        figures = draw_figures(report)
        for logger in loggers:
            publish(logger, report, figures, config, stages, folder)
        write_text(folder.page, render_page(report, figures))
        write_text(folder.report, report.to_json())
        succeeded = True
    finally:
        for logger in loggers:
            close(logger, exit_code=0 if succeeded else 1)


def _run_stages(
    config: DictConfig, stages: Sequence[Stage], folder: RunFolder, loggers: Sequence[GuardedLogger], console: Console
) -> tuple[list[Network], TargetSearch | None]:
    networks: list[Network] = []
    start: Path | None = None
    steps = epochs = 0
    target = read_target(config, stages)
    with StageDisplay(console, max(len(stage.name) for stage in stages)) as display:

        def trial(changed: DictConfig, stage: Stage, place: StageFolder, text: str) -> Network:
            line = display.begin(f"{stage.name} {text}", stage.epochs)
            network = run_stage(stage, changed, place, start=start, loggers=(), line=line)
            line.finish(status_text(network.metrics, Journal()))
            return network

        search = None if target is None else TargetSearch(target, folder, trial)
        for stage in stages:
            place = folder.stage(stage.name)
            if search is not None:
                config = search.settle(config, stage, networks, start)
            line = display.begin(stage.name, stage.epochs)
            for logger in loggers:
                logger.begin_stage(steps, epochs)
            networks.append(run_stage(stage, config, place, start=start, loggers=loggers, line=line))
            start = place.final
            checkpoint = _read(start)
            steps, epochs = steps + checkpoint["global_step"], epochs + stage.epochs
            line.finish(status_text(networks[-1].metrics, Journal.from_state(checkpoint[CHECKPOINT_KEY]["journal"])))
    return networks, search


def _read(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return content


def _report(config: DictConfig, networks: Sequence[Network], model: Path) -> Report:
    found = read_checkpoint(_read(model))
    assert found is not None
    plan, journal = found
    overrides = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in NOT_THE_RUN]
    return Report(
        recipe=HydraConfig.get().runtime.choices["recipe"],
        seed=config.seed,
        monitor=config.monitor,
        mode=config.mode,
        networks=tuple(networks),
        journal=to_report_entries(journal),
        plan=tuple(line.partition(". ")[2] for line in explain(plan).splitlines()[1:]),
        environment=collect_environment(),
        config=resolved(config),
        command=shlex.join(["lightning-compress", *overrides]),
    )


def _show(report: Report, folder: RunFolder, console: Console, *, finished: bool) -> None:
    console.print()
    console.print(Columns([Padding(layer_table(report), (0, 6, 1, 0)), network_table(report)]))
    if report.file is not None:
        tables = (file_layer_table(report.file), file_step_table(report.file))
        console.print(Columns([Padding(table, (0, 6, 1, 0)) for table in tables]))
    for end in report.asked_and_reached:
        console.print(Text(str(end["text"])), soft_wrap=True)
    console.print()
    offline = sorted(folder.path.glob("wandb/wandb/offline-run-*")) + sorted(folder.path.glob("wandb/offline-run-*"))
    places = {
        **({"file": folder.path / report.file.name} if report.file is not None else {}),
        "report": folder.page,
        "network": folder.stage(report.after.stage).final,
        **({"wandb": offline[-1]} if offline else {}),
    }
    for name, path in places.items():
        console.print(Text.assemble((f"{name:<9}", "bold"), relative(path)), soft_wrap=True)
    again = "this run was finished before; fresh=true starts over" if finished else "the same command"
    console.print(Text.assemble((f"{'resume':<9}", "bold"), again), soft_wrap=True)

"""A job of a sweep: into the ledger when it starts and when it ends, skipped when it was finished before."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback

from lightning_compress.app.ledger import Job, Ledger
from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_compress.report import Report


@dataclass
class Sweep:
    """The sweep that this process has begun.

    Attributes:
        ledger: of the sweep.
    """

    ledger: Ledger

    @property
    def end(self) -> str:
        """How it stands, in one sentence and what to do next."""
        begun, *_ = self.ledger.session() or [{"jobs": 0}]
        jobs = self.ledger.jobs()
        counts = {s: sum(job.status == s for job in jobs) for s in ("finished", "failed", "started")}
        left = max(int(begun["jobs"]) - len(jobs), 0)
        parts = [f"{counts['finished']} finished"]
        parts += [f"{counts['failed']} failed"] * bool(counts["failed"])
        parts += [f"{left + counts['started']} not done"] * bool(left + counts["started"])
        again = "; the same command does the rest" if counts["failed"] or left or counts["started"] else ""
        return f"{len(jobs) + left} jobs: {', '.join(parts)}{again}"


BEGUN: list[Sweep] = []


class OpenLedger(Callback):
    """Hydra's callback: notes that a sweep begins, and how many jobs it has."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first job."""
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        sizes = [len(list(one.sweep_iterator())) for one in overrides if one.is_sweep_override()]
        if config.dry_run:
            return
        ledger = Ledger(config.hydra.sweep.dir)
        ledger.write("begun", jobs=prod(sizes), command=list(config.hydra.overrides.task))
        BEGUN.append(Sweep(ledger))


def run_recorded(config: DictConfig, run: Callable[[DictConfig], Report], resolved: Mapping[str, Any]) -> None:
    """Run a job of a sweep and record it; one that is in the ledger as finished is left as it is.

    Args:
        config: of the job.
        run: does the job, or reads what it left.
        resolved: the configuration as primitives.

    Raises:
        Exception: what the job raises, once that is recorded.
    """
    hydra = HydraConfig.get()
    ledger, folder = Ledger(hydra.sweep.dir), Path(hydra.runtime.output_dir)
    name = os.path.relpath(folder, Path(hydra.sweep.dir).absolute())
    known = {job.name: job for job in ledger.jobs()}.get(name)
    if known is not None and not config.fresh and _is_done(known, folder, resolved):
        _say(f"{name} was finished before")
        return
    who = {"job": name, "seed": config.seed, "overrides": list(hydra.overrides.task), "process": os.getpid()}
    ledger.write("started", **who)
    begin = time.monotonic()
    try:
        report = run(config)
    except Exception as error:
        ledger.write("failed", **who, error=_one_line(error), config=dict(resolved), environment=_environment())
        raise
    ledger.write("finished", **who, seconds=round(time.monotonic() - begin, 1), **entry_of(report))
    _say(f"{name} finished; {_left(ledger)}")


def _is_done(job: Job, folder: Path, resolved: Mapping[str, Any]) -> bool:
    """Whether this very job is finished, and what it left is there."""
    return job.status == "finished" and job.line["config"] == resolved and (folder / "report.json").exists()


def entry_of(report: Report) -> dict[str, Any]:
    """What the ledger keeps of a finished run."""
    file = None if report.file is None else {"name": report.file.name, "bytes": report.file.bytes}
    return {
        "recipe": report.recipe,
        "command": shlex.split(report.command)[1:],
        "monitor": report.monitor,
        "mode": report.mode,
        "before": {**report.before.cost, **report.before.metrics},
        "after": {**report.after.cost, **report.after.metrics},
        "file": file,
        "config": dict(report.config),
        "environment": dict(report.environment),
    }


def _environment() -> dict[str, str]:
    from lightning_compress.report import collect_environment

    return collect_environment()


def _one_line(error: Exception) -> str:
    from lightning_compress.app.failures import describe_failure

    return describe_failure(error, []) or f"{type(error).__name__}: {error}".partition("\n")[0]


def _left(ledger: Ledger) -> str:
    """How many jobs are done, and about how long the others take at the pace since the command was started."""
    begun, *lines = ledger.session()
    done = sum(job.status in ("finished", "failed") for job in ledger.jobs())
    jobs = int(begun.get("jobs", done))
    here = {line["job"] for line in lines if line["status"] in ("finished", "failed")}
    if done >= jobs or not here:
        return f"{done} of {jobs} jobs"
    taken = (datetime.fromisoformat(lines[-1]["time"]) - datetime.fromisoformat(begun["time"])).total_seconds()
    seconds = int(taken / len(here) * (jobs - done))
    return f"{done} of {jobs} jobs, about {seconds // 60}:{seconds % 60:02d} left"


def _say(line: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(line, style="dim"), soft_wrap=True)


def as_plain_error(error: Exception) -> Exception:
    """The same as an error that travels between processes: not every exception can be pickled and read back."""
    return error if type(error) is CompressionError else CompressionError(_one_line(error))

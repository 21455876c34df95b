"""Many trials of a recipe, each where the others have shown promise: a front of accuracy against what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from lightning_compress.app.folder_names import folder_name
from lightning_compress.app.ledger import Ledger
from lightning_compress.app.run_folder import RunFolder
from lightning_compress.app.search_jobs import prepare, run_stages, run_whole
from lightning_compress.app.search_space import overrides_of, read_space, values_of
from lightning_compress.errors import CompressionError
from lightning_compress.report.pareto import COSTS

if TYPE_CHECKING:
    from optuna import Study, Trial

OPTIONS = ("trials", "workers", "objectives", "share", "space", "finalists", "full")
BEFORE = "shared"


@dataclass(frozen=True)
class Settings:
    """What ``search:`` in a recipe says.

    Attributes:
        trials: how many in all, those of earlier calls included.
        workers: processes at a time.
        objectives: the metric of validation first, then costs (see :data:`~lightning_compress.report.pareto.COSTS`).
        share: whether the first stage, which no trial changes, is run once for all.
        space: what may be chosen, see :mod:`~lightning_compress.app.search_space`.
        finalists: so many of the front, those of the best metric, and the recipe's own values, are run at full length.
        full: the values that make a run one of full length, by key.
    """

    trials: int
    workers: int
    objectives: tuple[str, ...]
    share: bool
    space: Mapping[str, Any]
    finalists: int
    full: Mapping[str, Any]


def read_settings(config: DictConfig) -> Settings:
    """The settings of a search.

    Raises:
        CompressionError: the recipe has none, or wrong ones.
    """
    if config.search is None or set(config.search) != set(OPTIONS):
        raise CompressionError(f"A search takes a recipe with search: {', '.join(OPTIONS)}, such as recipe=search.")
    found = OmegaConf.to_container(config.search, resolve=True)
    assert isinstance(found, dict)
    _check_kinds(config, found)
    settings = Settings(**{**found, "objectives": tuple(found["objectives"])})
    metric, *costs = settings.objectives or ("",)
    unknown = [cost for cost in costs if cost not in COSTS or cost == "latency"]
    if metric != config.monitor or unknown:
        raise CompressionError(
            f"search.objectives={list(settings.objectives)}: first the monitored {config.monitor!r}, then any of "
            f"{', '.join(cost for cost in COSTS if cost != 'latency')}."
        )
    if settings.trials < 1 or settings.workers < 1 or settings.finalists < 0:
        raise CompressionError("search.trials and search.workers are at least 1, search.finalists at least 0.")
    if "file_bytes" in costs and config.file is None:
        raise CompressionError("search.objectives has file_bytes, and the recipe writes no file: file=model.lcz.")
    return settings


def _check_kinds(config: DictConfig, found: Mapping[Any, Any]) -> None:
    """Now, not after hours of trials."""
    for name in ("trials", "workers", "finalists"):
        if type(found[name]) is not int:
            raise CompressionError(f"search.{name}={found[name]}: a whole number.")
    if not isinstance(found["objectives"], list):
        raise CompressionError(
            f"search.objectives={found['objectives']}: a list, such as [{config.monitor},file_bytes]."
        )
    if not isinstance(found["full"], dict):
        raise CompressionError(f"search.full={found['full']}: values by key; {{}} for runs as long as the trials.")
    for key in found["full"]:
        if OmegaConf.select(config, key, default=KeyError) is KeyError:
            raise CompressionError(f"search.full names {key!r}, which the recipe does not have.")


def search(config: DictConfig) -> None:
    """Run trials until there are as many as asked for, the best ones again at full length, then print the front.

    The folder holds Optuna's journal (``study.log``), the ledger, and each trial's run. Whatever ends the command, the
    same command goes on: finished trials stay, broken ones are taken up from their last epoch.

    Raises:
        CompressionError: something asked for cannot be done.
    """
    import optuna

    from lightning_compress.app.pareto import show

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = read_settings(config)
    space = read_space(settings.space)
    folder = Path(HydraConfig.get().runtime.output_dir)
    given = [one for one in HydraConfig.get().overrides.task if not one.lstrip("+~").startswith("search.")]
    GlobalHydra.instance().clear()
    with RunFolder(folder).lock():
        study = _open(config, settings, folder)
        first = values_of(config, space)
        if first is not None and not study.trials:
            study.enqueue_trial(first)
        shared = _run_first_stage(given, folder) if settings.share else None
        _run_trials(study, settings, space, given, folder, shared)
        own = [] if first is None else [first]
        chosen = [*own, *_best(study, settings.finalists)] if settings.finalists else []
        _run_finalists([overrides_of(values) for values in chosen], settings, given, folder, shared)
    show([folder], metric=config.monitor)


def _open(config: DictConfig, settings: Settings, folder: Path) -> Study:
    """The study, new or as an earlier call left it; what that was at is put in line again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    directions: list[Any] = [
        "maximize" if config.mode == "max" else "minimize",
        *["minimize"] * (len(settings.objectives) - 1),
    ]
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        study_name="search",
        directions=directions,
        sampler=optuna.samplers.TPESampler(n_startup_trials=6, constant_liar=True, seed=config.seed),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _run_first_stage(given: Sequence[str], folder: Path) -> Path:
    """What all trials begin with."""
    place = folder / BEFORE
    if not list(place.glob("*/network.json")):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(run_stages, list(given), str(place), 1).result()
    return place


def _run_trials(
    study: Study, settings: Settings, space: Mapping[str, Any], given: Sequence[str], folder: Path, shared: Path | None
) -> None:
    from optuna.trial import TrialState

    ledger, running = Ledger(folder), dict[Future[dict[str, Any]], tuple["Trial", str]]()
    over = (TrialState.COMPLETE, TrialState.PRUNED)
    begin, done_before = time.monotonic(), len(study.get_trials(states=over))
    ledger.write("begun", jobs=settings.trials, command=["search", *given])
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool, _ending(pool):
        while True:
            done = len(study.get_trials(states=over))
            while len(running) < min(settings.workers, settings.trials - done):
                trial = study.ask(dict(space))
                chosen = overrides_of(trial.params)
                name = f"trials/{folder_name(','.join(chosen))}"
                prepare(folder / name, shared)
                ledger.write("started", job=name, trial=trial.number, overrides=chosen)
                asked = trial.number if len(settings.objectives) == 1 else None
                future = pool.submit(run_whole, [*given, *chosen], str(folder / name), asked)
                running[future] = (trial, name)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, name = running.pop(future)
                text = _record(study, settings, ledger, trial, name, future)
                done = len(study.get_trials(states=over))
                pace = (time.monotonic() - begin) / max(done - done_before, 1)
                _say(trial, text, done, settings.trials, int(pace * (settings.trials - done)))


def _best(study: Study, count: int) -> list[dict[str, Any]]:
    """The values of the front's trials, the best metric first."""
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return [trial.params for trial in sorted(study.best_trials, key=lambda trial: sign * trial.values[0])][:count]


def _run_finalists(
    chosen: Sequence[list[str]], settings: Settings, given: Sequence[str], folder: Path, shared: Path | None
) -> None:
    """Trials are short, and rank; what the best ones are worth is told by runs of full length."""
    ledger, running = Ledger(folder), dict[Future[dict[str, Any]], dict[str, Any]]()
    full = overrides_of(settings.full)
    finished = {job.name for job in ledger.jobs() if job.status == "finished"}
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool, _ending(pool):
        for values in chosen:
            name = f"finalists/{folder_name(','.join(values))}"
            who = {"job": name, "overrides": [*values, *full]}
            if name not in finished and who not in running.values():
                prepare(folder / name, shared)
                ledger.write("started", **who)
                running[pool.submit(run_whole, [*given, *values, *full], str(folder / name), None)] = who
        for number, future in enumerate(as_completed(running), 1):
            who = running[future]
            try:
                entry = future.result()
            except CompressionError as error:
                ledger.write("failed", **who, error=str(error))
                text = str(error)
            else:
                ledger.write("finished", **who, seed=entry["config"]["seed"], **entry)
                text = _in_words(settings, entry)
            Console().print(Text(f"finalist  {text}   ({number} of {len(running)})"), soft_wrap=True)


@contextmanager
def _ending(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Whatever ends the command ends the processes."""
    try:
        yield
    except BaseException:
        processes = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # Lightning puts SIGTERM off; whatever is on the disk is whole
        raise


def _figures(settings: Settings, entry: Mapping[str, Any]) -> list[float]:
    """What a run reached of each objective."""
    metrics = {**entry["after"], "file_bytes": (entry["file"] or {}).get("bytes")}
    return [metrics[objective] for objective in settings.objectives]


def _in_words(settings: Settings, entry: Mapping[str, Any]) -> str:
    pairs = zip(settings.objectives, _figures(settings, entry), strict=True)
    return "   ".join(f"{name} {value:,.6g}" for name, value in pairs)


def _record(
    study: Study, settings: Settings, ledger: Ledger, trial: Trial, name: str, future: Future[dict[str, Any]]
) -> str:
    """Tell Optuna and the ledger how a trial ended; in words.

    Raises:
        Exception: a trial failed for a reason that the others would share: it raised what is no error of use.
    """
    from optuna.trial import TrialState

    who = {"job": name, "trial": trial.number, "overrides": overrides_of(trial.params)}
    try:
        entry = future.result()
    except CompressionError as error:
        study.tell(trial, state=TrialState.PRUNED)
        ledger.write("failed", **who, error=str(error))
        return str(error)
    study.tell(trial, _figures(settings, entry))
    ledger.write("finished", **who, seed=entry["config"]["seed"], **entry)
    return _in_words(settings, entry)


def _say(trial: Trial, text: str, done: int, trials: int, seconds: int) -> None:
    left = f"about {seconds // 60}:{seconds % 60:02d} left" if done < trials else "all done"
    Console().print(Text(f"trial {trial.number:>3}  {text}   ({done} of {trials}, {left})"), soft_wrap=True)

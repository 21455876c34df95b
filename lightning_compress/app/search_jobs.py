"""What a search runs in processes of its own: a run with other values, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_compress.app.folder_names import folder_name
from lightning_compress.app.recipes import register_recipes
from lightning_compress.app.search_path import find_folder
from lightning_compress.app.sweep import entry_of
from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from optuna import Trial


def prepare(place: Path, shared: Path | None) -> None:
    """Lay the stages that all trials begin with into a run's folder."""
    for stage in shared.iterdir() if shared is not None else ():
        if (stage / "network.json").exists() and not (place / stage.name).exists():
            shutil.copytree(stage, place / stage.name)


def run_whole(overrides: list[str], folder: str, trial: int | None) -> dict[str, Any]:
    """A trial, in a process of its own: what the ledger keeps of it.

    Args:
        overrides: of the command.
        folder: for the run.
        trial: its number, if Optuna's pruner can be asked.

    Raises:
        CompressionError: it is hopeless, or its values do not go together.
    """
    from lightning_compress.app.failures import describe_failure
    from lightning_compress.app.hopeless import StopHopeless
    from lightning_compress.app.run import run_quietly

    StopHopeless.trial = None if trial is None else _trial(Path(folder).parents[1], trial)
    try:
        return entry_of(run_quietly(_config(overrides, folder)))
    except Exception as error:
        line = describe_failure(error, [])
        if line is None:
            raise
        raise CompressionError(line) from None  # one that can be pickled


def run_stages(overrides: list[str], folder: str, number: int) -> None:
    """The first stages alone, in a process of their own."""
    from lightning_compress.app.run import run_first_stages

    run_first_stages(_config(overrides, folder), Path(folder), number)


def _trial(folder: Path, number: int) -> Trial:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.load_study(study_name="search", storage=storage)
    return optuna.Trial(study, study.trials[number]._trial_id)


def _config(overrides: Sequence[str], folder: str) -> DictConfig:
    """The configuration as Hydra would give it to a job in ``folder``."""
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    register_recipes()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        config = compose("config", [*overrides], return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = folder
    HydraConfig.instance().set_config(config)
    task = config.copy()
    with open_dict(task):
        del task["hydra"]
    return task

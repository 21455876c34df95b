"""Entry of the ``lightning-compress`` command. Whatever is slow to import is imported when a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import hydra
from omegaconf import OmegaConf

from lightning_compress.app.failures import describe_failure
from lightning_compress.app.folder_names import folder_name
from lightning_compress.app.recipes import register_recipes
from lightning_compress.app.search_path import find_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

# at import: the processes of a parallel launcher import this file and nothing else
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
register_recipes()
_FAILURES: list[Exception] = []


def main() -> int:
    """Run the command; returns its exit code: 0, 1 after an error of use, 130 after an interrupt."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["summarize"]:
            from lightning_compress.app.summary import summarize

            summarize(arguments[1:])
        elif arguments and arguments[0] in ("inspect", "verify", "unpack"):
            from lightning_compress.artifact import command

            getattr(command, arguments[0])(arguments[1:])
        elif arguments[:1] == ["cache"]:
            _run_hydra([*arguments[1:], "hydra.run.dir=."], _build_caches)
        else:
            _run_hydra(arguments, _run_job)
        if _FAILURES:
            raise _FAILURES.pop()
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last epoch", 130)
    except Exception as error:
        line = describe_failure(error, arguments)
        if line is None:
            raise
        return _say(line, 1)
    return 0


def _run_hydra(arguments: list[str], job: Callable[[DictConfig], None]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are
    sys.argv = [sys.argv[0], *arguments, *_sweep_name(arguments)]
    hydra.main(config_path=str(find_folder("conf")), config_name="config", version_base="1.3")(job)()


def _sweep_name(arguments: list[str]) -> list[str]:
    """The name of a sweep, made from its command, unless it was given one."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if not {"-m", "--multirun"} & set(arguments) or any(argument.startswith("sweep=") for argument in overrides):
        return []
    return [f"sweep='{folder_name(','.join(sorted(overrides)))}'"]


def _run_job(config: DictConfig) -> None:
    """One run. Hydra announces what a job raises; an error of use is kept for :func:`main`, which says it better."""
    from lightning_compress.app.run import run

    try:
        run(config)
    except Exception as error:
        line = describe_failure(error, [])
        if line is None:
            raise
        if config.sweep is not None:
            _say(f"this job failed, the others go on: {line}", 1)
            raise
        _FAILURES.append(error)


def _build_caches(config: DictConfig) -> None:
    """The caches that a recipe reads, built ahead of its runs."""
    from lightning_compress.app.caches import build_caches

    try:
        build_caches(config)
    except Exception as error:
        _FAILURES.append(error)


def _say(line: str, exit_code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(line, style="red" if exit_code == 1 else ""), soft_wrap=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

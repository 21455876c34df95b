"""Entry of the ``lightning-compress`` command. Whatever is slow to import is imported when a run starts."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import hydra
from omegaconf import OmegaConf

from lightning_compress.app.failures import describe_failure
from lightning_compress.app.folder_names import folder_name
from lightning_compress.app.recipes import register_recipes
from lightning_compress.app.search_path import find_folder
from lightning_compress.app.sweep import BEGUN, as_plain_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

# at import: the processes of a parallel launcher import this file and nothing else
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
register_recipes()
_FAILURES: list[Exception] = []


def main() -> int:
    """Run the command; returns its exit code: 0, 1 after an error, 130 after an interrupt, 141 after a closed pipe."""
    arguments = sys.argv[1:]
    try:
        _dispatch(arguments)
        sys.stdout.flush()
        if _FAILURES:
            raise _FAILURES.pop()
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last epoch", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = describe_failure(error, arguments)
        if line is None:
            raise
        return _say(line, 1)
    finally:
        _end_sweep()
    return 0


def _dispatch(arguments: list[str]) -> None:
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if {"-h", "--help"} & set(arguments) and word != "pareto":  # which has flags, and a help of its own
        from lightning_compress.app.help import help_text

        print(help_text(arguments))
    elif word == "summarize":
        from lightning_compress.app.summary import summarize

        summarize(rest)
    elif word == "compare":
        from lightning_compress.app.compare import compare

        compare(rest)
    elif word == "pareto":
        from lightning_compress.app.pareto import pareto

        pareto(rest)
    elif word in ("inspect", "verify", "unpack"):
        from lightning_compress.artifact import command

        getattr(command, word)(rest)
    elif word == "cache":
        _run_hydra([*rest, "hydra.run.dir=."], _build_caches)
    elif word == "plan":
        _run_hydra([*(one for one in rest if one != "--dry-run"), "dry_run=true"], _run_job)
    elif word == "search":
        recipe = [] if any(one.startswith("recipe=") for one in rest) else ["recipe=search"]
        _run_hydra([*recipe, *rest], _search)
    else:
        _run_hydra(arguments, _run_job)


def _run_hydra(arguments: list[str], job: Callable[[DictConfig], None]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are
    sys.argv = [sys.argv[0], *arguments, *_sweep_name(arguments)]
    hydra.main(config_path=str(find_folder("conf")), config_name="config", version_base="1.3")(job)()


def _sweep_name(arguments: list[str]) -> list[str]:
    """The name of a sweep, made from its command, unless it was given one."""
    begins = ("-", "hydra", "dry_run=", "fresh=")  # how it is done, not what
    overrides = [argument for argument in arguments if not argument.startswith(begins)]
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
        if config.sweep is not None:
            _say(f"this job failed, the others go on: {line or traceback.format_exc()}", 1)
            raise as_plain_error(error) from None
        if line is None:
            raise
        _FAILURES.append(error)


def _build_caches(config: DictConfig) -> None:
    """The caches that a recipe reads, built ahead of its runs."""
    from lightning_compress.app.caches import build_caches

    try:
        build_caches(config)
    except Exception as error:
        _FAILURES.append(error)


def _search(config: DictConfig) -> None:
    """Many runs, each from what the others have shown."""
    from lightning_compress.app.search import search

    try:
        search(config)
    except Exception as error:
        if describe_failure(error, []) is None:
            raise
        _FAILURES.append(error)


def _end_sweep() -> None:
    """How the sweep stands that this process has begun, if it has."""
    while BEGUN:
        sweep = BEGUN.pop()
        folder = os.path.relpath(sweep.ledger.path.parent)
        _say(
            f"{sweep.end}\nledger   {os.path.relpath(sweep.ledger.path)}\nfigure   lightning-compress pareto {folder}",
            0,
        )


def _say(line: str, exit_code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(line, style="red" if exit_code == 1 else ""), soft_wrap=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

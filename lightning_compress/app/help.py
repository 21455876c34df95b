"""``--help``: what the command does, what can be chosen, and every value. Hydra's own listing takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_compress.app.search_path import find_folder

TEXT = """\
lightning-compress: trains a network, compresses it while it trains, and reports what is left of it.

  lightning-compress                                       the default recipe, on digits, offline
  lightning-compress recipe=neuron_pruning seed=3          another recipe, another seed
  lightning-compress callbacks.weights.sparsity=0.9        any value below can be set
  lightning-compress dry_run=true                          what each stage would cut, without training
  lightning-compress -m seed=0,1,2                         a sweep: one run for each value, a ledger of them all
  lightning-compress -m seed=0,1,2 hydra/launcher=joblib   likewise, in parallel
  lightning-compress search                                a front of accuracy against bytes, found by Optuna
  lightning-compress pareto FOLDER [--rival FOLDER]        table and figure over a sweep or a search
  lightning-compress summarize FOLDER                      mean and interval over the seeds of a sweep
  lightning-compress compare RUN RUN                       what differs between two runs, and what came of it
  lightning-compress cache recipe=NAME ...                 teachers' answers ahead of a sweep that shares them
  lightning-compress inspect|verify|unpack FILE.lcz        what a compressed file holds, byte by byte
{more}
The same command goes on where an interrupted run stopped; fresh=true starts over. --cfg job shows what a run would do,
--hydra-help Hydra's own flags.

Groups (group=option)

{groups}

Values (name=value), {recipe}

{values}"""
MORE: dict[str, str] = {}
"""Further commands: how they are called, and what they do."""


def help_text(arguments: Sequence[str]) -> str:
    """The help; the values are those of the recipe that ``arguments`` name.

    >>> "recipe=neuron_pruning" in help_text([])
    True
    """
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        values = OmegaConf.to_yaml(compose("config", overrides))
    recipe = next((one for one in overrides if one.startswith("recipe=")), "of the default recipe")
    more = "".join(f"  {f'lightning-compress {call}':<57}{what}\n" for call, what in MORE.items())
    groups = "\n".join(f"{group}: {', '.join(options)}" for group, options in sorted(_groups().items()))
    return TEXT.format(groups=groups, values=values, recipe=recipe, more=more)


def _groups() -> dict[str, list[str]]:
    folders = [folder for folder in find_folder("conf").iterdir() if folder.is_dir()]
    groups = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    return {**groups, "recipe": sorted(path.stem for path in find_folder("recipes").glob("*.yaml"))}

"""The recipes as Hydra's group ``recipe`` of our own command; other apps do not see them."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lightning_compress.app.search_path import find_folder


def register_recipes() -> list[str]:
    """Make each ``recipes/NAME.yaml`` an option of the group ``recipe``; returns the names.

    >>> "iterative_pruning" in register_recipes()
    True
    """
    paths = sorted(find_folder("recipes").glob("*.yaml"))
    for path in paths:
        node = OmegaConf.load(path)
        ConfigStore.instance().store(group="recipe", name=path.stem, node=node, package="_global_")
    return [path.stem for path in paths]

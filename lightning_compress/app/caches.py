"""The caches of teachers' answers that a recipe reads, built by one command before the runs that share them."""

from __future__ import annotations

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from lightning_compress.app.quiet import quiet
from lightning_compress.app.stages import check_values, module_config, read_stages
from lightning_compress.distillation import Distillation, build_cache
from lightning_compress.errors import CompressionError


def build_caches(config: DictConfig) -> None:
    """Build what is not there yet, for every distillation of the recipe that names a ``cache``; print where it is.

    Raises:
        CompressionError: the recipe names no cache, or one is stale.
    """
    stages = read_stages(config)
    check_values(config)
    options = {str(key): value for key, value in config.trainer.items() if key != "_target_"}
    console, built = Console(), 0
    for stage in stages:
        for name in stage.callbacks:
            callback = instantiate(config.callbacks[name])
            if isinstance(callback, Distillation) and callback.cache is not None:
                L.seed_everything(config.seed, workers=True, verbose=False)
                with quiet():
                    module = instantiate(module_config(config, stage))
                    cache = build_cache(callback, module, instantiate(config.data), **options)
                console.print(Text(str(cache)), soft_wrap=True)
                built += 1
    if not built:
        raise CompressionError(
            "No callback of this recipe reads a cache. Add callbacks.NAME.cache=FOLDER to its Distillation."
        )

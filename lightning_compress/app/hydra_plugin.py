"""Puts our configuration groups on the search path of every Hydra app of the environment.

The build moves this file to ``hydra_plugins/lightning_compress.py``, where Hydra looks for plugins. Hydra imports it at
the start of any app; of the package it imports one small file.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lightning_compress.app.search_path import find_folder


class LightningCompressSearchPath(SearchPathPlugin):
    """Appends ``callbacks``, ``data``, ``logger`` and the others: an app's own files come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra at the start of an app."""
        search_path.append("lightning-compress", f"file://{find_folder('conf')}")

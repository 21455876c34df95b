"""Where ``conf`` and ``recipes`` lie, and the plugin that puts ``conf`` on the search path of every Hydra app.

The wheel carries a copy of this file as ``hydra_plugins/lightning_compress.py``, where Hydra looks for plugins. Hydra
imports it at the start of any app of the environment: it must not import the package.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def find_folder(name: str) -> Path:
    """The folder ``conf`` or ``recipes``: inside the package in a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.

    >>> (find_folder("conf") / "config.yaml").is_file()
    True
    """
    spec = find_spec("lightning_compress")
    package = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"lightning_compress in {str(package)!r} has no folder {name!r}; install it again.")


class LightningCompressSearchPath(SearchPathPlugin):
    """Appends our groups (``callbacks``, ``data``, ``logger``, ...): an app's own come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra at the start of an app."""
        search_path.append("lightning-compress", f"file://{find_folder('conf')}")

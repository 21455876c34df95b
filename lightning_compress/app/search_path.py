"""Where ``conf`` and ``recipes`` lie: inside the package in a wheel, beside it in a checkout."""

from pathlib import Path

import lightning_compress


def find_folder(name: str) -> Path:
    """The folder ``conf`` or ``recipes``.

    Raises:
        FileNotFoundError: it is in neither place.

    >>> (find_folder("conf") / "config.yaml").is_file()
    True
    """
    package = Path(lightning_compress.__file__).parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"lightning_compress in {str(package)!r} has no folder {name!r}; install it again.")

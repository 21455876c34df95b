"""Names of run folders: a pure function of the command, so that the same command finds its run again."""

import re
from hashlib import sha256

LONGEST = 80


def folder_name(overrides: str) -> str:
    """A folder name for the overrides of a command; "default" if there are none.

    What no folder name should hold is replaced, and a digest then keeps different overrides apart.

    >>> folder_name("seed=1,trainer.accelerator=gpu")
    'seed=1,trainer.accelerator=gpu'
    >>> folder_name("")
    'default'
    >>> folder_name("data.shares=[0.6,0.2,0.2]")
    'data.shares=_0.6,0.2,0.2_-052c73'
    """
    plain = re.sub(r"[^A-Za-z0-9=,._+-]+", "_", overrides)
    if plain == overrides and len(plain) <= LONGEST:
        return plain or "default"
    return f"{plain[:LONGEST]}-{sha256(overrides.encode()).hexdigest()[:6]}"

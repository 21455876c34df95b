"""The global random states: kept as primitives and tensors, set again, isolated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_random_states() -> dict[str, Any]:
    """States of torch (CPU and every CUDA device), numpy and Python; loadable with ``weights_only=True``.

    >>> states = get_random_states()
    >>> a = torch.rand(3)
    >>> set_random_states(states)
    >>> torch.equal(a, torch.rand(3))
    True
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on from the states that :func:`get_random_states` returned."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


def seed_torch(seed: int) -> None:
    """Seed torch's generators as ``torch.manual_seed`` does; that one takes milliseconds where there is no device but
    the CPU, since it notes down for all others from where it was called.

    >>> seed_torch(1)
    >>> a = torch.rand(3)
    >>> _ = torch.manual_seed(1)
    >>> torch.equal(a, torch.rand(3))
    True
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def isolated_random_states() -> Iterator[None]:
    """The random states are afterwards what they were, also on exceptions.

    >>> before = torch.get_rng_state()
    >>> with isolated_random_states():
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    states = get_random_states()
    try:
        yield
    finally:
        set_random_states(states)

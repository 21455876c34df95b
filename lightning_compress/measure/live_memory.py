"""An exact tally of the bytes that tensors hold while code runs."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_compress.measure.replica import tensors_in


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, the bytes of all living storages that operations have made, and their peak.

    Views share a storage, which counts once, until the last of them is gone. On the meta device the bytes are those
    that would be held.

    Attributes:
        live: bytes held now.
        peak: the most bytes held at one time.

    >>> import torch
    >>> with LiveMemory() as memory:
    ...     x = torch.ones(100)
    ...     y = (x + 1).view(10, 10)
    ...     del x
    >>> memory.live, memory.peak
    (400, 800)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that are there already; a storage that is known counts no second time."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._storages:
                self._storages[key] = weakref.ref(storage, self._released(key, storage.nbytes()))
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it has made."""
        result = func(*args, **(kwargs or {}))
        self.hold(tensors_in(result))
        return result

    def _released(self, key: int, nbytes: int) -> Any:
        def release(_: Any) -> None:
            del self._storages[key]
            self.live -= nbytes

        return release

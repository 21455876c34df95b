"""A method of a module as a teacher: the module is found behind it, so that it is treated like one."""

from __future__ import annotations

from inspect import ismethod
from typing import Any

from torch import nn


class BoundMethod(nn.Module):
    """A module whose forward is a method of another one.

    Args:
        module: whose method it is.
        method: its name.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the method returns."""
        return getattr(self.module, self.method)(*args, **kwargs)


def behind(source: Any) -> Any:
    """The module, where ``source`` is its ``forward``; a :class:`BoundMethod` for another one; else ``source``.

    >>> net = nn.Linear(2, 2)
    >>> behind(net.forward) is net
    True
    """
    if not ismethod(source) or not isinstance(source.__self__, nn.Module):
        return source
    module = source.__self__
    if source.__func__ in (nn.Module.__call__, type(module).forward):
        return module
    return BoundMethod(module, source.__name__)

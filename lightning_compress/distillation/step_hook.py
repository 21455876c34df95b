"""The wrap of a module's steps: on the instance, for the time of a fit; a copy of the module has its own steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L

from lightning_compress.distillation.indexed import unwrap

Around = Callable[..., Any]
"""Called with the user's own method and its arguments."""


class StepHook:
    """Stands on the instance in the place of a method, such as ``training_step``.

    In a copy of the module, by ``deepcopy`` or ``pickle``, it only calls the user's own, with the batch as the user
    knows it.
    """

    def __init__(
        self,
        module: L.LightningModule,
        name: str,
        around: Around | None = None,
        former: Callable[..., Any] | None = None,
    ) -> None:
        self.module, self.name, self.around, self.former = module, name, around, former
        # Lightning looks at the signature of what is wrapped, and whether the user has overridden it
        own = former or getattr(type(module), name)
        self.__wrapped__ = getattr(own, "__wrapped__", own)

    @property
    def own(self) -> Callable[..., Any]:
        """The user's method."""
        found: Callable[..., Any] = self.former or getattr(type(self.module), self.name).__get__(self.module)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method."""
        if self.around is not None:
            return self.around(self.own, *args, **kwargs)
        if args and self.name.endswith("_step"):
            args = (unwrap(args[0])[0], *args[1:])
        return self.own(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> StepHook:
        return StepHook(memo.get(id(self.module), self.module), self.name, former=copy.deepcopy(self.former, memo))

    def __reduce__(self) -> tuple[type[StepHook], tuple[Any, ...]]:
        return StepHook, (self.module, self.name, None, self.former)


def wrap_step(module: L.LightningModule, name: str, around: Around) -> None:
    """Put a :class:`StepHook` on the instance."""
    module.__dict__[name] = StepHook(module, name, around, module.__dict__.get(name))


def unwrap_step(module: L.LightningModule, name: str) -> None:
    """Take it off; what the user had set on the instance comes back."""
    hook = module.__dict__.get(name)
    if isinstance(hook, StepHook):
        del module.__dict__[name]
        if hook.former is not None:
            module.__dict__[name] = hook.former

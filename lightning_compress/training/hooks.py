"""The one wrap of a module's checkpoint hooks: it survives deepcopy and pickle, and takes itself off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

HOOKS = ("on_save_checkpoint", "on_load_checkpoint")


class CheckpointHook:
    """Stands on the instance in the place of a hook, calls ``action`` around the user's own.

    A copy of the module, by ``deepcopy`` or ``pickle``, gets a hook that only calls the user's own.
    """

    def __init__(self, module: nn.Module, name: str, action: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.module, self.name, self.action = module, name, action
        self.former = module.__dict__.get(name)

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        """Act before the user's own load hook, or after the user's own save hook."""
        if self.action is not None and self.name == "on_load_checkpoint":
            self.action(checkpoint)
        own = self.former or getattr(type(self.module), self.name).__get__(self.module)
        own(checkpoint)
        if self.action is not None and self.name == "on_save_checkpoint":
            self.action(checkpoint)

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckpointHook:
        return CheckpointHook(memo.get(id(self.module), self.module), self.name)

    def __reduce__(self) -> tuple[type[CheckpointHook], tuple[nn.Module, str]]:
        return CheckpointHook, (self.module, self.name)


def wrap_hooks(module: nn.Module, actions: dict[str, Callable[[dict[str, Any]], None]]) -> None:
    """Put a :class:`CheckpointHook` on the instance for each name in ``actions``."""
    for name, action in actions.items():
        module.__dict__[name] = CheckpointHook(module, name, action)


def unwrap_hooks(module: nn.Module) -> None:
    """Take the hooks off; what the user had set on the instance comes back."""
    for name in HOOKS:
        hook = module.__dict__.get(name)
        if isinstance(hook, CheckpointHook):
            del module.__dict__[name]
            if hook.former is not None:
                module.__dict__[name] = hook.former

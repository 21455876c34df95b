"""Samples that leave a network at exits: in a running forward only the unresolved rows are passed on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import BANK, ExitBank

Decide: TypeAlias = Callable[[int, Tensor, Tensor], Tensor | bool]
"""Gets the exit's number, its logits (N, classes) and the rows' numbers in the batch (N); says who leaves: (N,) bool,
or one bool for all."""


ONE_ROW = torch.zeros(1, dtype=torch.int64)


class AllOut(BaseException):
    """Ends a forward in which nobody is left; a BaseException, which no ``except Exception`` on the way swallows."""


class Route:
    """One forward through the exits of a network.

    Args:
        bank: the network's exits.
        decide: who leaves.
        stop: number of the exit at which whoever is left leaves; None goes to the end.
    """

    def __init__(self, bank: ExitBank, decide: Decide, stop: int | None = None) -> None:
        self._bank, self._decide, self._stop = bank, decide, stop
        self.rows: Tensor | None = None
        self.number = 0
        self.parts: list[tuple[int, Tensor | None, Tensor]] = []

    def at_exit(self, exit_: int, output: Any) -> Any:
        """Ask head ``exit_``; what goes on of the module's ``output``."""
        features = first_tensor(output)
        if not self.parts and self.rows is None:
            self.number = len(features)
        logits = self._bank.logits(exit_, features)
        if exit_ == self._stop:
            self.parts.append((exit_, self.rows, logits))
            raise AllOut
        if self.rows is None:
            self.rows = ONE_ROW if len(features) == 1 else torch.arange(len(features), device=features.device)
        leaves = self._decide(exit_, logits, self.rows)
        if isinstance(leaves, bool):  # a single row: no index is computed
            if leaves:
                self.parts.append((exit_, self.rows, logits))
                raise AllOut
            return output
        if not bool(leaves.any()):
            return output
        self.parts.append((exit_, self.rows[leaves], logits[leaves]))
        stays = ~leaves
        self.rows = self.rows[stays]
        if self.rows.numel() == 0:
            raise AllOut
        return _select(output, stays, len(features))

    def finish(self, output: Tensor) -> None:
        """What is left has come to the end."""
        if not self.parts:
            self.number = len(output)
        self.parts.append((len(self._bank.points), self.rows, output))

    def gather(self) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and the number of the exit (N) of all rows, in the batch's order."""
        exit_, rows, logits = self.parts[0]
        if len(self.parts) == 1:
            return logits, torch.full((len(logits),), exit_, device=logits.device)
        answers = logits.new_empty(self.number, logits.shape[1])
        exits = torch.empty(self.number, dtype=torch.int64, device=logits.device)
        for exit_, rows, logits in self.parts:
            assert rows is not None
            rows = rows.to(answers.device)
            answers[rows], exits[rows] = logits.to(answers.dtype), exit_
        return answers, exits


class ExitHook:
    """A forward hook of a module with an exit; in a copy of the module, by ``deepcopy`` or ``pickle``, it rests."""

    def __init__(self, exit_: int, action: Callable[[int, Any], Any] | None = None) -> None:
        self.exit_, self.action = exit_, action

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """What the module's output becomes."""
        return None if self.action is None else self.action(self.exit_, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExitHook:
        return ExitHook(self.exit_)

    def __reduce__(self) -> tuple[type[ExitHook], tuple[int]]:
        return ExitHook, (self.exit_,)


@contextmanager
def hooked(modules: Mapping[int, nn.Module], action: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside, ``action(number, output)`` is called after each module, and its result passed on."""
    handles = [module.register_forward_hook(ExitHook(exit_, action)) for exit_, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_route(network: nn.Module, route: Route, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits and exits of one forward through a network whose exits call ``route.at_exit``."""
    with suppress(AllOut):
        route.finish(logits_of(network(*args, **kwargs)))
    return route.gather()


def all_exits(network: nn.Module, bank: ExitBank, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Logits of every exit and of the network, of the whole batch: nobody leaves."""
    found: dict[int, Tensor] = {}

    def note(exit_: int, output: Any) -> None:
        found[exit_] = bank.logits(exit_, first_tensor(output))

    with hooked(points_of(network, bank), note):
        final = logits_of(network(*args, **kwargs))
    missing = [point for exit_, point in enumerate(bank.points) if exit_ not in found]
    if missing:
        raise CompressionError(f"The forward does not run {missing[0]!r}, where an exit is. Choose other points.")
    return [*(found[exit_] for exit_ in range(len(bank.points))), final]


def check_compaction(
    network: nn.Module,
    bank: ExitBank,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    tolerance: float = 1e-4,
) -> None:
    """Prove that rows can leave: forwards in which some do give what the whole batch gives, row by row.

    Tried are leaving every other row, all rows but one, and a different row at each exit.

    Args:
        network: a private copy in evaluation mode.
        bank: its exits.
        args: of a batch of at least three rows.
        kwargs: likewise.
        tolerance: relative to the largest logit.

    Raises:
        CompressionError: rows interact, or something beside the exit carries the batch on; with the exit's name.
    """
    whole = all_exits(network, bank, args, kwargs)
    patterns: list[tuple[str, Decide]] = []
    for exit_, point in enumerate(bank.points):
        patterns += [(repr(point), partial(_leave, exit_, odd)) for odd in (True, False)]
    patterns.append(("all exits", lambda exit_, _, rows: rows == exit_))
    for where, decide in patterns:
        reason = _difference(network, bank, whole, decide, args, kwargs, tolerance)
        if reason:
            raise CompressionError(
                f"With rows leaving at {where} {reason}: rows of a batch interact behind it, or something passes it "
                "by, such as a skip connection. Put the exit where everything goes through, behind a whole block."
            )


def _leave(chosen: int, odd: bool, exit_: int, _: Tensor, rows: Tensor) -> Tensor:
    """At one exit every other row leaves, or all but the second."""
    return ((rows % 2 == 1) if odd else (rows != 1)) & (exit_ == chosen)


def _difference(
    network: nn.Module,
    bank: ExitBank,
    whole: Sequence[Tensor],
    decide: Decide,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tolerance: float,
) -> str:
    """What is wrong if rows leave as ``decide`` says; empty if nothing is."""
    route = Route(bank, decide)
    try:
        with hooked(points_of(network, bank), route.at_exit):
            logits, exits = run_route(network, route, args, kwargs)
        expected = torch.stack(list(whole))[exits, torch.arange(len(exits), device=exits.device)]
    except Exception as error:
        return f"the forward fails ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    off = float((logits - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
    return "" if off <= tolerance else f"answers differ by {off:.2g} of the largest"


def find_bank(network: nn.Module) -> ExitBank:
    """The exits of ``network``.

    Raises:
        CompressionError: it has none; the message names parts that have.
    """
    bank = getattr(network, BANK, None)
    if isinstance(bank, ExitBank):
        return bank
    owners = [name.rpartition(".")[0] for name, part in network.named_modules() if isinstance(part, ExitBank)]
    if len(owners) == 1:
        return find_bank(network.get_submodule(owners[0]))
    raise CompressionError(
        f"{type(network).__name__} has no early exits. Fit it with EarlyExits(...), or attach_exits(module, ...)."
    )


def owner_of_bank(module: nn.Module) -> nn.Module:
    """The part of ``module`` that its exits hang on: the network itself."""
    bank = find_bank(module)
    owner: nn.Module = next(part for part in module.modules() if part._modules.get(BANK) is bank)
    return owner


def points_of(network: nn.Module, bank: ExitBank) -> dict[int, nn.Module]:
    """The modules behind which the exits are, by the exits' numbers."""
    return {exit_: find_point(network, point) for exit_, point in enumerate(bank.points)}


def find_point(network: nn.Module, point: str) -> nn.Module:
    """The module behind which an exit is.

    Raises:
        CompressionError: no such module.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if point not in modules or not point:
        names = [name for name in modules if name and not name.startswith(BANK)]
        raise CompressionError(f"No module is called {point!r}. {did_you_mean(point, names)}")
    return modules[point]


def first_tensor(output: Any) -> Tensor:
    """The features in a module's output: a tensor, or the first of a tuple or list.

    Raises:
        CompressionError: neither.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise CompressionError(
            f"An exit reads features (N, ...) of a module that returns them; this one returns {type(output).__name__}."
        )
    return output


def logits_of(output: Any) -> Tensor:
    """The logits (N, classes) that a network returns: a tensor, or the entry ``logits``.

    Raises:
        CompressionError: anything else.
    """
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.dim() != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise CompressionError(f"Early exits are for networks that return logits (N, classes), not {shape}.")
    return found


def _select(output: Any, stays: Tensor, number: int) -> Any:
    """The rows that stay, of every tensor in ``output`` that has the batch as its first dimension."""
    if isinstance(output, Tensor):
        return output[stays] if output.dim() and len(output) == number else output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_select(part, stays, number) for part in output))
    if isinstance(output, tuple | list):
        return type(output)(_select(part, stays, number) for part in output)
    if isinstance(output, dict):
        duplicate = copy.copy(output)
        for key, part in output.items():
            duplicate[key] = _select(part, stays, number)
        return duplicate
    return output

"""Running a network without leaving a trace: the captured call, private copies, isolated random states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states


@dataclass(frozen=True, eq=False)
class TracingInput:
    """A call that runs the network: of the submodule ``module`` (``""`` is the root itself) with these arguments.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> [tuple(output.shape) for output in TracingInput("", (torch.zeros(5, 3),), {}).outputs(net)]
    [(5, 2)]
    """

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, root: nn.Module) -> object:
        """The result of the call on ``root``, whatever it is."""
        return root.get_submodule(self.module)(*self.args, **self.kwargs)

    def outputs(self, root: nn.Module) -> tuple[Tensor, ...]:
        """The tensors in the result, in the order in which they are nested there."""
        return tuple(tensors_in(self.run(root)))

    def map(self, function: Callable[[Tensor], Tensor]) -> TracingInput:
        """The same call with ``function`` applied to every tensor among the arguments."""
        return replace(self, args=_map(function, self.args), kwargs=_map(function, self.kwargs))


class _Captured(BaseException):
    """Ends a captured call; a BaseException, so that no ``except Exception`` on the way swallows it."""


def capture(root: nn.Module, call: Callable[[nn.Module], object]) -> TracingInput:
    """The first call of the outermost submodule with parameters that ``call`` makes, and its arguments.

    ``call`` gets a copy of ``root`` and ends at that first call, so it may be a whole training step:
    ``capture(module, lambda copy: copy.training_step(batch, 0))``. A LightningModule whose step calls
    ``self.network(x)`` gives a call of ``"network"``, one whose step calls ``self(x)`` a call of ``""``. Modules
    without parameters (losses, metrics, augmentations) are passed over. The arguments are detached copies; ``root`` and
    the random states stay as they are.

    Raises:
        CompressionError: no submodule with parameters is called.

    >>> net = nn.ModuleDict({"network": nn.Linear(3, 2)})
    >>> capture(net, lambda copy: copy["network"](torch.zeros(4, 3)).sum()).module
    'network'
    """
    found: list[TracingInput] = []
    duplicate = private_copy(root)
    for name, module in duplicate.named_modules():
        if next(module.parameters(), None) is not None:
            module.register_forward_pre_hook(_recorder(name, found), with_kwargs=True)
    with isolated_random_states(), suppress(_Captured):
        call(duplicate)
    if not found:
        raise CompressionError(
            f"The call of {type(root).__name__} ran none of its submodules that have parameters, so the network "
            "cannot be traced. Set example_input_array to an input of forward."
        )
    return found[0]


def _recorder(name: str, found: list[TracingInput]) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.inference_mode(False):  # an inference tensor could not be used with autograd later
            found.append(TracingInput(name, args, kwargs).map(lambda tensor: tensor.detach().clone()))
        raise _Captured

    return record


def private_copy(root: nn.Module) -> nn.Module:
    """A deep copy without any hooks: what users and callbacks have hooked into ``root`` neither runs nor is copied.

    Parts compiled with ``torch.compile`` run uncompiled in the copy.

    Raises:
        CompressionError: ``root`` holds something that cannot be copied.

    >>> net = nn.Linear(2, 2)
    >>> _ = net.register_forward_hook(lambda *_: print("called"))
    >>> private_copy(net)(torch.zeros(1, 2)).shape
    torch.Size([1, 2])
    """
    memo: dict[int, Any] = {}
    for module in root.modules():
        for key, value in vars(module).items():
            if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
                memo[id(value)] = type(value)()
    try:
        with torch.inference_mode(False):
            duplicate = copy.deepcopy(root, memo)
    except Exception as error:
        raise CompressionError(
            f"{type(root).__name__} cannot be copied, so nothing can be tried out on a copy: {error} "
            "Remove old-style weight_norm, spectral_norm or torch.nn.utils.prune masks first."
        ) from error
    for module in duplicate.modules():
        original = module._modules.get("_orig_mod")
        if original is not None:  # made by torch.compile: the copy would run the compiled original
            module.forward = original.__call__
    return duplicate


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """All submodules evaluate inside; afterwards each has its own train or eval flag back.

    The flags are set directly: a ``train()`` that a user overrode is not called.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> with evaluation_mode(net):
    ...     print([part.training for part in net.modules()])
    [False, False, False]
    >>> [part.training for part in net.modules()]
    [True, True, False]
    """
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, flag in flags:
            if flag:  # the module's own setter costs microseconds, in each step of a fit
                object.__setattr__(part, "training", False)
        yield
    finally:
        for part, flag in flags:
            if part.training is not flag:
                object.__setattr__(part, "training", flag)


@contextmanager
def exact_arithmetic(module: nn.Module) -> Iterator[None]:
    """Inside, what is computed twice can be compared, on the device of ``module``: neither autocast nor TF32, nor the
    fused operation of ``nn.TransformerEncoderLayer``, which reads the weights past every hook.
    """
    device = next((tensor.device.type for tensor in module.parameters()), "cpu")
    matmul, convolution, attention = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mha
    before = matmul.allow_tf32, convolution.allow_tf32
    fused = attention.get_fastpath_enabled()
    attention.set_fastpath_enabled(False)
    if device == "cuda":
        matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        attention.set_fastpath_enabled(fused)
        if device == "cuda":
            matmul.allow_tf32, convolution.allow_tf32 = before


def float32(tensor: Tensor) -> Tensor:
    """``tensor`` in single precision if it holds floating-point numbers, else as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def call_with_batch(root: nn.Module, batch: object) -> object:
    """The result of ``root`` for a batch that is its input, or a tuple or list that begins with it.

    >>> call_with_batch(nn.Identity(), (torch.ones(1), torch.zeros(1))).item()
    1.0
    """
    return root(batch[0] if isinstance(batch, tuple | list) else batch)


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order.

    >>> len(list(tensors_in({"scores": torch.zeros(1), "hidden": (torch.zeros(1), None)})))
    2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(function, part) for part in value)
    if isinstance(value, dict):
        duplicate = copy.copy(value)
        for key, part in value.items():
            duplicate[key] = _map(function, part)
        return duplicate
    if is_dataclass(value) and not isinstance(value, type):
        duplicate = cast(Any, copy.copy(value))
        for field in fields(value):
            object.__setattr__(duplicate, field.name, _map(function, getattr(value, field.name)))
        return duplicate
    return value

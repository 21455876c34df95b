"""What a network costs: parameters, multiply-accumulates, bytes and memory, counted without side effects."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.errors import CompressionError
from lightning_compress.measure.live_memory import LiveMemory
from lightning_compress.measure.macs import PRODUCTS
from lightning_compress.measure.replica import (
    replica,
    tensors_in,
    tensors_of,
    tensors_replaced,
    to_meta,
    to_own_storage,
)
from lightning_compress.random_states import isolated_random_states

ExampleInput = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one forward of a network costs in evaluation mode.

    Attributes:
        parameters: entries of all parameters; shared ones count once.
        nonzero_parameters: entries of all parameters that are not exactly zero; NaN counts as not zero.
        macs: multiply-accumulates in matrix products, convolutions, attention and recurrent layers, for the whole
            example batch, as a dense kernel does them (zeros and masked positions included). Additions, activations,
            normalisation and pooling are not counted. A module that is called twice counts twice.
        dense_bytes: bytes of all tensors of the ``state_dict``, each at its own dtype, shared ones once, with no zero
            left out.
        peak_memory_bytes: the most bytes that parameters, buffers, input and activations hold at one time during a
            forward without gradients: an exact tally of tensor storages, with attention and recurrence made of plain
            operations. Work space inside a kernel and what an allocator adds are not in it.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    dense_bytes: int
    peak_memory_bytes: int


def measure(module: nn.Module, example_input: ExampleInput) -> Cost:
    """Counts what ``module`` costs; neither the module, the input nor any random state is changed.

    The forward runs on a copy whose tensors have a shape and no values (the meta device), in evaluation mode and
    without forward hooks. Where the forward asks for values, a real copy runs once instead.

    Args:
        module: any module, trained or not, on any device but meta.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments of ``forward``. The
            multiply-accumulates are those of this very batch.

    Raises:
        CompressionError: parameters without values, a module that cannot be copied, or a forward that fails.

    >>> measure(nn.Linear(4, 3), torch.zeros(2, 4))
    Cost(parameters=15, nonzero_parameters=15, macs=24, dense_bytes=60, peak_memory_bytes=116)
    """
    _check(module)
    parameters = list(module.parameters())
    macs, peak_memory_bytes, _ = _forward_cost(module, example_input)
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        nonzero_parameters=sum(int(torch.count_nonzero(parameter.detach())) for parameter in parameters),
        macs=macs,
        dense_bytes=_state_bytes(module),
        peak_memory_bytes=peak_memory_bytes,
    )


def macs_by_module(module: nn.Module, example_input: ExampleInput) -> dict[str, int]:
    """The multiply-accumulates of :class:`Cost` by the name of the module in which they happen, its parts included.

    Args:
        module: as in :func:`measure`.
        example_input: as in :func:`measure`.

    Raises:
        CompressionError: as in :func:`measure`.

    >>> macs_by_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    {'': 24, '0': 24}
    """
    _check(module)
    root, counts = type(module).__name__, _forward_cost(module, example_input)[2]
    names = {name: name.removeprefix(root).removeprefix(".") for name in counts if name.split(".")[0] == root}
    return {short: counts[name] for name, short in sorted(names.items())}


def _check(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise CompressionError(f"{name!r} has no shape yet; run a forward once before measuring.")
        if parameter.is_meta:
            raise CompressionError(f"{name!r} is on the meta device and has no values; load the weights first.")


def _state_bytes(module: nn.Module) -> int:
    distinct = {id(tensor): tensor for tensor in tensors_in(module.state_dict(keep_vars=True))}
    return sum(tensor.nbytes for tensor in distinct.values())


def _forward_cost(module: nn.Module, example_input: ExampleInput) -> tuple[int, int, dict[str, int]]:
    """MACs, peak bytes and MACs by module; on the meta device, or, where that fails, on a real copy."""
    with isolated_random_states():
        try:
            return _run(replica(module, to_meta), tensors_replaced(example_input, to_meta))
        except Exception:
            pass  # a forward that reads values cannot run on meta; whatever else is wrong fails again below
        try:
            copy = replica(module, to_own_storage)
        except Exception as error:
            raise CompressionError(f"{type(module).__name__} cannot be copied to be measured: {error}") from error
        try:
            return _run(copy, tensors_replaced(example_input, to_own_storage))
        except Exception as error:
            raise CompressionError(
                f"{_failing_layer(error, copy)} fails on the example input: {error}. Give what forward takes: a "
                "tensor, a tuple of positional arguments or a dict of keyword arguments, on the module's device."
            ) from error


def _run(copy: nn.Module, example_input: ExampleInput) -> tuple[int, int, dict[str, int]]:
    memory = LiveMemory()
    memory.hold(tensors_of(copy) + tensors_in(example_input))
    flops = FlopCounterMode(display=False, custom_mapping=PRODUCTS)
    with torch.no_grad(), _decomposed(), memory, flops:
        if type(example_input) is tuple:  # a named one, such as a PackedSequence, is an argument itself
            copy(*example_input)
        elif isinstance(example_input, dict):
            copy(**example_input)
        else:
            copy(example_input)
    by_module = {name: sum(counts.values()) // 2 for name, counts in flops.get_flop_counts().items()}
    return flops.get_total_flops() // 2, memory.peak, by_module


@contextmanager
def _decomposed() -> Iterator[None]:
    """Fused encoder and recurrent kernels off, since a counter sees nothing of what they multiply."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
        for backend in backends:
            stack.callback(setattr, backend, "enabled", backend.enabled)
            backend.enabled = False
        yield


def _failing_layer(error: BaseException, module: nn.Module) -> str:
    """The name of the innermost layer of ``module`` that was running when ``error`` was raised."""
    names = {id(layer): name for name, layer in module.named_modules()}
    running = [names.get(id(frame.f_locals.get("self"))) for frame, _ in walk_tb(error.__traceback__)]
    innermost = next((name for name in reversed(running) if name), "")
    return repr(innermost) if innermost else f"the forward of {type(module).__name__}"

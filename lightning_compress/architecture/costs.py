"""What a layer, or what stands in for it, costs: parameters, MACs, or its share of the measured time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature

import torch
from torch import Tensor, nn

from lightning_compress.architecture.geometry import Geometry, macs_in, parameters_in
from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.measure import check_runtime, compare_latency, measure, runner
from lightning_compress.plan.specs import ModuleSpec, build_module
from lightning_compress.surgery.tracing import TracingInput, evaluation_mode, private_copy, tensors_in

COUNTS = ("params", "macs", "latency")
ROUNDS = 15
"""Samples of each option's time."""
Shapes = Sequence[tuple[int, ...]]


def input_shapes(network: nn.Module, names: Sequence[str], call: TracingInput) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of all that each layer reads in one call."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def look(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: shapes[name].append(tuple(next(tensors_in((args, kwargs))).shape))

    copy = private_copy(network)
    for name in names:
        copy.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True)
    with torch.no_grad(), evaluation_mode(copy):
        call.run(copy)
    return shapes


def total_cost(network: nn.Module, call: TracingInput | None, of: str) -> float:
    """Parameters of the whole network, or MACs of one call; 1, the whole of it, of "latency".

    Raises:
        CompressionError: an unknown count; MACs without a call.
    """
    if of not in COUNTS:
        raise CompressionError(f"of={of!r}. {did_you_mean(of, COUNTS)}")
    if of == "params":
        return float(sum(parameter.numel() for parameter in network.parameters()))
    if call is None:
        raise CompressionError(f"of={of!r} needs to run the network. Give data=, one batch will do.")
    if of == "latency":
        return 1.0
    part = network.get_submodule(call.module)
    return float(
        measure(
            part, call.args if not call.kwargs else dict(zip(_names(part), call.args, strict=False)) | call.kwargs
        ).macs
    )


def spec_cost(spec: ModuleSpec, shapes: Shapes, of: str) -> float:
    """Parameters, or the MACs of all calls of the layer."""
    return float(parameters_in(spec) if of == "params" else macs_in(spec, shapes))


class Clock:
    """Times layers beside the whole network, in shares of its time.

    Args:
        network: as it is.
        call: runs it, with tensors by position alone.
        runtime: "eager" or "onnxruntime".
        batch_size: samples at a time; those of the call are repeated or cut to it.

    Raises:
        CompressionError: a runtime that is not there, or a call that cannot be timed.
    """

    def __init__(self, network: nn.Module, call: TracingInput, *, runtime: str, batch_size: int) -> None:
        check_runtime(runtime)
        if call.kwargs or not all(isinstance(one, Tensor) for one in call.args):
            raise CompressionError("A latency budget times networks whose forward takes tensors by position alone.")
        self.runtime = runtime
        self.call = one_of(call, batch_size)
        self.inputs: list[Tensor] = list(self.call.args)
        self._dense = self._runner(private_copy(network).get_submodule(call.module), self.inputs)
        self._clock = "wall" if self.inputs[0].is_cuda else "cpu"

    def shares(self, specs: Mapping[str, ModuleSpec], shapes: Shapes) -> dict[str, float]:
        """How long each of the layers takes for all its calls, as a share of the network's time."""
        device, found = self.inputs[0].device, dict.fromkeys(specs, 0.0)
        for shape in shapes:
            value = torch.randn(shape, device=device)
            calls = {
                name: self._runner(randomize_(build_module(spec, device=device)), [value])
                for name, spec in specs.items()
            }
            times = compare_latency({"network": self._dense, **calls}, rounds=ROUNDS, clock=self._clock)  # type: ignore[arg-type]
            for name in specs:
                found[name] += times[name].ratio.median
        return found

    def share_of(self, network: nn.Module, rounds: int = 2 * ROUNDS) -> float:
        """The time of another network as a share."""
        other = self._runner(network.get_submodule(self.call.module), self.inputs)
        times = compare_latency({"network": self._dense, "other": other}, rounds=rounds, clock=self._clock)  # type: ignore[arg-type]
        return times["other"].ratio.median

    def _runner(self, module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], object]:
        return runner(module, list(inputs), self.runtime)


def one_of(call: TracingInput, batch_size: int) -> TracingInput:
    """The call with so many samples."""
    return call.map(lambda tensor: _of_size(tensor, batch_size) if tensor.dim() else tensor)


@torch.no_grad()
def randomize_(module: nn.Module) -> nn.Module:
    """Give it random weights, for the clock: zeros can be faster."""
    for parameter in module.parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
    return module


def _of_size(tensor: Tensor, batch_size: int) -> Tensor:
    repeats = -(-batch_size // len(tensor))
    return torch.cat([tensor] * repeats)[:batch_size].clone()


def _names(module: nn.Module) -> list[str]:
    return list(signature(module.forward).parameters)


def dense_spec(layer: nn.Module) -> ModuleSpec:
    """The spec of the layer as it is."""
    return Geometry.of(layer).dense(bias=layer.bias is not None)

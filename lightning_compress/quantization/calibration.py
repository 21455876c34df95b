"""Quantization after training, with the machinery of training: ranges from data, weights rounded with care."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.quantization.batches import batches_of
from lightning_compress.quantization.bit_allocation import allocate_bits
from lightning_compress.quantization.bit_budget import BitBudget
from lightning_compress.quantization.dataflow import trace_dataflow
from lightning_compress.quantization.equalization import equalize_
from lightning_compress.quantization.network import FakeQuantization
from lightning_compress.quantization.observation import Observer
from lightning_compress.quantization.rounding import adaround, gptq
from lightning_compress.quantization.sensitivity import sensitivity
from lightning_compress.quantization.settings import Bits, Settings
from lightning_compress.quantization.weights import ObservedWeight
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import InputStatistics, evaluation_mode, fold_batchnorm_, gather
from lightning_compress.surgery.ports import CONVOLUTIONS
from lightning_compress.surgery.tracing import call_with_batch

_ROUNDINGS: dict[str, Callable[..., Tensor] | None] = {"nearest": None, "adaround": adaround, "gptq": gptq}


@torch.no_grad()
def calibrate(
    module: nn.Module,
    data: Iterable[Any],
    weight_bits: Bits | BitBudget = 8,
    activation_bits: Bits = 8,
    *,
    rounding: str = "nearest",
    correct_bias: bool = False,
    equalize: bool = False,
    observer: str | Observer = "mse",
    weight_observer: str | Observer = "mse",
    forward: Callable[[nn.Module, Any], object] | None = None,
    **settings: Any,
) -> FakeQuantization:
    """Quantize a trained module, in place: its weights become their values on the grid, its activations are rounded.

    Args:
        module: the network; it goes on in the mode, training or evaluation, that it is in.
        data: batches of what ``forward`` takes, on the module's device; a few hundred samples are enough.
        weight_bits: 2 to 8; None leaves weights alone. {pattern: bits} gives each layer its own, a BitBudget finds
            them.
        activation_bits: likewise.
        rounding: "nearest"; "adaround" and "gptq" round so that outputs change least, from second moments (Linear and
            ungrouped convolutions; other layers go to the nearest).
        correct_bias: let biases make up for the mean shift that rounding causes (Nagel et al., ICCV 2019).
        equalize: fold BatchNorms and give neighbouring layers ranges of the same size first. Changes Parameters, not
            outputs.
        observer: name of a function in ``quantization/observers``, or any callable: the range of activations.
        weight_observer: likewise, for weights.
        forward: runs the network on a batch; by default calls it with the batch, or with the first element of a tuple
            or list.
        settings: further fields of :class:`~lightning_compress.quantization.settings.Settings`.

    Returns:
        The quantizers, in force until their ``detach()``.

    Raises:
        CompressionError: no data, values that are not finite, bits out of range, layers that cannot be quantized; the
            module has not been touched.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> quantization = calibrate(net, [torch.rand(16, 4)], 4, 8)
    >>> net[0].weight[0].unique().numel() <= 15
    True
    >>> quantization.detach()
    """
    run, batches = forward or call_with_batch, batches_of(data, "calibrate on")
    if rounding not in _ROUNDINGS:
        raise CompressionError(f"rounding={rounding!r} is unknown. {did_you_mean(str(rounding), _ROUNDINGS)}")
    for key in settings:
        if key not in (known := {field.name for field in fields(Settings)}):
            raise CompressionError(f"calibrate() knows no {key}=. {did_you_mean(key, known)}")
    if isinstance(weight_bits, BitBudget):
        names = {key: settings[key] for key in ("targets", "exclude") if key in settings}
        found = sensitivity(module, batches, weight_bits.bits, forward=forward, **names)
        weight_bits = allocate_bits(found, mean_bits=weight_bits.mean_bits, size=weight_bits.size).bits
    asked = Settings(weight_bits, activation_bits, observer, weight_observer, **settings)
    for bits in (weight_bits, activation_bits):
        if isinstance(bits, Mapping) and 0 in bits:
            raise CompressionError(f"{dict(bits)!r} changes bits in mid-fit, and calibrate() has no time. Give bits.")
    if asked.scale != "observed" or (not asked.symmetric[0] and rounding != "nearest"):
        raise CompressionError("calibrate() observes scales, and rounds symmetric weights only with gptq and adaround.")
    quantization = FakeQuantization(module, asked, "calibrate")
    dataflow = trace_dataflow(module, list(quantization.inputs), lambda copy: run(copy, batches[0]))
    if equalize:
        fold_batchnorm_(module)
        equalize_(module, lambda copy: run(copy, batches[0]))
    layers = _moment_layers(module, quantization)
    statistics: dict[str, InputStatistics] = {}
    if layers and (rounding != "nearest" or correct_bias):
        statistics = gather(module, batches, layers, forward=run, second_moments=rounding != "nearest")
    quantization.connect(dataflow)
    quantization.attach()
    try:
        _observe(module, quantization, batches, run)
        quantization.enable()
        _round_weights(module, quantization, statistics, _ROUNDINGS[rounding], correct_bias)
    except BaseException:
        quantization.detach()
        raise
    for quantizer in quantization.quantizers.values():
        quantizer.frozen = True
    return quantization


def _moment_layers(module: nn.Module, quantization: FakeQuantization) -> list[str]:
    """Layers whose inputs can be described by second moments."""
    names = [name.rpartition(".")[0] for name in quantization.weights]
    layers = [(name, module.get_submodule(name)) for name in names]
    return [
        name
        for name, layer in layers
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS))
        and not isinstance(layer, _ConvTransposeNd)
        and getattr(layer, "groups", 1) == 1
        and not isinstance(module.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]


def _observe(
    module: nn.Module, quantization: FakeQuantization, batches: list[Any], run: Callable[[nn.Module, Any], object]
) -> None:
    places = quantization.activations
    for quantizer in places.values():
        quantizer.enabled = quantizer.watching = True
    with isolated_random_states(), evaluation_mode(module):
        for batch in batches:
            run(module, batch)
    for place, quantizer in places.items():
        quantizer.watching = False
        quantizer.settle()
        if not bool(torch.isfinite(quantizer.scale).all()):
            raise CompressionError(f"{place}: values that are not finite (NaN or infinite) have no range to quantize.")


def _round_weights(
    module: nn.Module,
    quantization: FakeQuantization,
    statistics: dict[str, InputStatistics],
    rounding: Callable[..., Tensor] | None,
    correct_bias: bool,
) -> None:
    rounded = quantization.rounded_weights()
    for name, quantizer in quantization.weights.items():
        layer_name = name.rpartition(".")[0]
        layer, weight = module.get_submodule(layer_name), quantization.raw(name)
        seen = statistics.get(layer_name)
        if rounding is not None and seen is not None:
            flat, scale = weight.flatten(1), quantizer.parameters_for(weight)[0]
            scale = scale.view(-1, 1).expand(-1, quantizer.layout.group or flat.shape[1])
            scale = scale.reshape(flat.shape) if quantizer.layout.axis == 0 else scale.expand_as(flat)
            flat = rounding(flat, seen.second_moment.to(weight.dtype), scale, quantizer.grid)
            rounded[name] = flat.view_as(weight)
        bias = layer._parameters.get("bias")
        if correct_bias and seen is not None and bias is not None:
            shift = (weight - rounded[name]).double()
            shift = shift if shift.dim() == 2 else shift.flatten(2).sum(2)
            bias.add_((shift @ seen.mean).to(bias.dtype))
        _settle(quantizer, weight)
        weight.copy_(rounded[name])
        quantizer.enabled = False


def _settle(quantizer: ObservedWeight, weight: Tensor) -> None:
    quantizer.scale, quantizer.zero_point = (part.clone() for part in quantizer.parameters_for(weight))
    quantizer.ready = quantizer.frozen = True

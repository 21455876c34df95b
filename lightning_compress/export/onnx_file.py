"""One network as one ONNX file: any number of samples, and the network's own answers."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from lightning_compress.errors import CompressionError
from lightning_compress.measure.runtimes import check_runtime
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import evaluation_mode, private_copy
from lightning_compress.surgery.tracing import tensors_in

TOLERANCE = 1e-4
OPSET = 18


def export_onnx(
    module: nn.Module,
    path: str | Path,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
    output_names: Sequence[str] = (),
    trust_tracing: bool = False,
) -> Path:
    """Write ``module`` as an ONNX file and see that ONNX Runtime gives the same answers.

    The file is written whole or not at all. It is checked at the example's number of samples and, with
    ``dynamic_batch``, at other numbers too: outputs may differ by ``tolerance`` of the largest. Both of torch's
    exporters are tried.

    Args:
        module: any network, compressed or not; it is not touched.
        path: of the file, usually ``*.onnx``.
        example_input: what ``forward`` takes, as a batch of at least one sample.
        dynamic_batch: the first dimension of every input may be of any length.
        tolerance: relative.
        output_names: of the outputs in the file.
        trust_tracing: let the network look at values and shapes in Python while it is traced; what it decides is then
            fixed in the file, and only the check at several numbers of samples sees a difference.

    Returns:
        ``path``.

    Raises:
        CompressionError: a package is missing, no exporter can write the network, or what it wrote computes something
            else; the message has the reasons.

    >>> import tempfile
    >>> path = export_onnx(nn.Linear(3, 2), Path(tempfile.mkdtemp(), "network.onnx"), torch.randn(4, 3))
    >>> path.name
    'network.onnx'
    """
    check_runtime("onnxruntime")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(one, Tensor) and one.dim() for one in inputs):
        raise CompressionError("export_onnx needs an example: a batch of samples, or a tuple of such tensors.")
    network = private_copy(module).cpu().float().eval()
    inputs = tuple(one.detach().cpu() for one in inputs)
    batches = _batches(inputs) if dynamic_batch else [inputs]
    reasons = []
    for name, write in (("tracing", _with_tracing), ("torch.export", _with_export)):
        try:
            exported = _written(write, network, batches[0], dynamic_batch, output_names, trust_tracing)
            reason = _difference(exported, network, batches, tolerance)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if not reason:
            target = Path(path)
            part = target.with_name(f"{target.name}.part")
            part.write_bytes(exported)
            os.replace(part, target)
            return target
        reasons.append(f"by {name}: {reason}")
    fixed = " Perhaps it only runs with this number of samples: dynamic_batch=False." if dynamic_batch else ""
    raise CompressionError(f"{type(module).__name__} cannot be written as ONNX: {'; '.join(reasons)}.{fixed}")


def open_session(source: str | Path | bytes, threads: int = 1) -> Any:
    """A session of ONNX Runtime on the CPU."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    given = source if isinstance(source, bytes) else str(source)
    return runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _batches(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The example with at least two samples (an exporter takes one for a constant), with one more, and one alone."""
    two = inputs if len(inputs[0]) > 1 else tuple(torch.cat([one, one]) for one in inputs)
    return [two, tuple(torch.cat([one, one[:1]]) for one in two), tuple(one[:1] for one in two)]


def _written(
    write: Callable[..., None],
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic: bool,
    names: Sequence[str],
    trust: bool,
) -> bytes:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with (
        ExitStack() as stack,
        TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        isolated_random_states(),
        torch.no_grad(),
        _quiet(),
    ):
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)  # its one fused operation is unknown to ONNX
        warnings.simplefilter("ignore")
        if not trust:
            warnings.simplefilter("error", TracerWarning)  # a value would become a constant in the file
        path = Path(folder, "network.onnx")
        write(network, inputs, path, dynamic, list(names) or None)
        return path.read_bytes()


def _with_export(network: nn.Module, inputs: Any, path: Path, dynamic: bool, names: list[str] | None) -> None:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs) if dynamic else None
    torch.onnx.export(
        network,
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        output_names=names,
        external_data=False,
        verbose=False,
        opset_version=OPSET,
    )


def _with_tracing(network: nn.Module, inputs: Any, path: Path, dynamic: bool, names: list[str] | None) -> None:
    ins = [f"input{number}" for number in range(len(inputs))]
    outs = names or [f"output{number}" for number in range(len(list(tensors_in(network(*inputs)))))]
    axes = {name: {0: "batch"} for name in [*ins, *outs]} if dynamic else None
    torch.onnx.export(
        network, inputs, path, dynamo=False, input_names=ins, output_names=outs, dynamic_axes=axes, opset_version=17
    )


def _difference(exported: bytes, network: nn.Module, batches: Sequence[tuple[Tensor, ...]], tolerance: float) -> str:
    """What is wrong with the file; empty if nothing is."""
    session = open_session(exported)
    names = [one.name for one in session.get_inputs()]
    for inputs in batches:
        with torch.no_grad(), evaluation_mode(network), isolated_random_states():
            expected = list(tensors_in(network(*inputs)))
        feed = {name: one.numpy() for name, one in zip(names, inputs, strict=False)}
        found = [torch.from_numpy(one) for one in session.run(None, feed)]
        if [one.shape for one in found] != [one.shape for one in expected]:
            return f"outputs have shapes {[tuple(one.shape) for one in found]} at {len(inputs[0])} samples"
        for one, two in zip(expected, found, strict=True):
            off = float((one.double() - two.double()).abs().max()) if one.numel() else 0.0
            if not off <= tolerance * max(float(one.double().abs().max()), 1e-12):
                return f"outputs differ by {off:.2g} at {len(inputs[0])} samples"
    return ""


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporters write about what they do; only what they cannot do is of interest, and that they raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)

"""Networks made ready to be timed: in PyTorch as they are, or as fp32 sessions of ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean

RUNTIMES = ("eager", "onnxruntime")
"""Where a network can be timed."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_runtime(runtime: str) -> None:
    """Refuse a runtime that is unknown or not installed.

    >>> check_runtime("eager")

    Raises:
        CompressionError: with the line that installs it.
    """
    if runtime not in RUNTIMES:
        raise CompressionError(f"runtime={runtime!r} is unknown. {did_you_mean(runtime, RUNTIMES)}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if runtime == "onnxruntime" and missing:
        raise CompressionError(
            f"runtime='onnxruntime' needs {', '.join(missing)}. Install with: pip install {' '.join(PACKAGES)}"
        )


def runner(module: nn.Module, inputs: Sequence[Tensor], runtime: str = "eager") -> Callable[[], object]:
    """A call that runs ``module`` once on ``inputs`` in ``runtime``, in fp32 and evaluation mode.

    Args:
        module: on the CPU or on a device; it is put into evaluation mode.
        inputs: positional arguments of ``forward``.
        runtime: of :data:`RUNTIMES`; a session of ONNX Runtime has one thread and all optimizations.

    Raises:
        CompressionError: see :func:`check_runtime`; or the network cannot be exported.

    >>> runner(nn.Linear(2, 1), [torch.zeros(3, 2)])().shape
    torch.Size([3, 1])
    """
    check_runtime(runtime)
    module.eval()
    if runtime == "onnxruntime":
        return _onnx_session(module, inputs)

    def run() -> object:
        with torch.inference_mode():
            result = module(*inputs)
            if inputs and inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)
            return result

    return run


def _onnx_session(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], object]:
    onnxruntime = importlib.import_module("onnxruntime")
    attention = torch.backends.mha
    fused = attention.get_fastpath_enabled()
    try:
        attention.set_fastpath_enabled(False)  # its one operation is unknown to ONNX
        quiet = contextlib.redirect_stdout(io.StringIO())  # a failed export prints its graph
        with warnings.catch_warnings(), torch.no_grad(), quiet, TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            path = Path(folder) / "network.onnx"
            torch.onnx.export(module.cpu().float(), tuple(one.cpu() for one in inputs), path, dynamo=False)
            exported = path.read_bytes()
    except Exception as error:
        raise CompressionError(
            f"{type(module).__name__} cannot be exported to ONNX: {error} Use runtime='eager'."
        ) from error
    finally:
        attention.set_fastpath_enabled(fused)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    feed = {name: one.cpu().numpy() for name, one in zip(names, inputs, strict=False)}
    return lambda: session.run(None, feed)

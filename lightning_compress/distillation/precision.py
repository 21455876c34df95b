"""What every loss shares: single precision whatever autocast says, and a declaration of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LossFunction = TypeVar("LossFunction", bound=Callable[..., Tensor])


def full_precision(function: LossFunction) -> LossFunction:
    """``function`` outside of autocast, on tensors of at least single precision.

    >>> doubled = full_precision(lambda tensor: 2 * tensor)
    >>> doubled(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        args = tuple(_raised(value) for value in args)
        kwargs = {name: _raised(value) for name, value in kwargs.items()}
        device = _device(args)
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list | tuple):
        return type(value)(_raised(part) for part in value)
    return value


def _device(args: tuple[Any, ...]) -> str:
    first = args[0] if args else None
    tensor = first[0] if isinstance(first, list | tuple) and first else first
    return tensor.device.type if isinstance(tensor, Tensor) else "cpu"


def reads(outputs: str) -> Callable[[LossFunction], LossFunction]:
    """Declare what the two outputs are: ``"classes"`` (N, classes), ``"tokens"`` (N, length, classes), ``"pixels"``
    (N, classes, height, width), ``"labels"`` (independent of each other) or ``"values"``. Of a loss that declares
    nothing, such as a user's own, any outputs are taken.
    """

    def mark(function: LossFunction) -> LossFunction:
        function.outputs = outputs  # type: ignore[attr-defined]
        return function

    return mark


def outputs_of(loss: Callable[..., Tensor]) -> str:
    """What :func:`reads` declared, of a partial too; ``"any"`` where nothing was.

    >>> from lightning_compress.distillation.losses.sigmoid_kd import sigmoid_kd
    >>> outputs_of(partial(sigmoid_kd, temperature=1.0))
    'labels'
    """
    outputs: str = getattr(_inner(loss), "outputs", "any")
    return outputs


def name_of(loss: Callable[..., Tensor]) -> str:
    """What errors call it.

    >>> from lightning_compress.distillation.losses.kd import kd
    >>> name_of(partial(kd, temperature=1.0))
    'kd'
    """
    inner = _inner(loss)
    return getattr(inner, "__name__", type(inner).__name__)


def _inner(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    while isinstance(loss, partial):
        loss = loss.func
    return loss


def parameters_of(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    """Its parameters by name; a module's are those of its ``forward``.

    >>> list(parameters_of(nn.MSELoss()))
    ['input', 'target']
    """
    return signature(function.forward if isinstance(function, nn.Module) else function).parameters


def accepted(function: Callable[..., Any], **available: Any) -> dict[str, Any]:
    """Those of the keyword arguments that ``function`` takes.

    >>> accepted(lambda student, teacher, temperature: 0, temperature=4.0, labels=None)
    {'temperature': 4.0}
    """
    parameters = parameters_of(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return available
    given = function.keywords if isinstance(function, partial) else {}
    return {name: value for name, value in available.items() if name in parameters and name not in given}

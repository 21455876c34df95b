"""One teacher: where it comes from, what it knows, how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_compress.distillation.bound_method import BoundMethod, behind
from lightning_compress.distillation.class_map import class_map
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.distillation.outputs import logits_in
from lightning_compress.errors import CompressionError
from lightning_compress.registry import reader_of
from lightning_compress.surgery import TracingInput, evaluation_mode, fold_batchnorm_, private_copy
from lightning_compress.training import load_from_checkpoint

GIVES = ("logits", "probabilities")
LEAST_PROBABILITY = 1e-6


class Teacher:
    """A network, a checkpoint or anything callable that says what the student shall learn.

    It stays outside of the student's module tree. It is asked in evaluation mode and without gradients, whatever its
    flags say, and is left with the flags it had; its parameters and buffers do not change.

    Args:
        source: a module; the path of a Lightning checkpoint (also of a compressed network) or of a ``.lcz`` file; a
            model with ``predict_proba`` (its ``classes_`` are the class map); or any function of the student's inputs.
            A method of a module is treated as the module. What a function calls inside is not looked into: it runs
            without gradients, but its networks keep the modes that they have (call ``eval()`` yourself) and nothing
            checks that they stay as they are.
        module: class of a checkpoint's LightningModule; None takes the student's.
        into: a network of the class that is in a ``.lcz`` file, which names none itself; it becomes the teacher.
        classes: the student's class for each of the teacher's outputs, -1 where the student has none; for a model with
            named ``classes_`` a mapping of those names, in which the student's classes alone need to be; None where
            both have the same classes.
        gives: ``"logits"`` or ``"probabilities"``.
        weight: its weight in an ensemble.
        device: where it runs; None is where the student is.
        dtype: of its floating-point numbers, ``torch.bfloat16`` or ``"bfloat16"`` for speed; None leaves it.
        fold: fold its BatchNorms into the layers before them (about half of the cost of a convolutional teacher).

    Attributes:
        in_place: whether it changes the tensors that it is given: then it is given copies.

    Raises:
        CompressionError: an argument out of its range.

    >>> Teacher(nn.Linear(4, 3), classes=[0, 2, 5]).name
    'Linear'
    """

    def __init__(
        self,
        source: nn.Module | str | Path | Callable[..., Any] | Any,
        *,
        module: type[L.LightningModule] | None = None,
        into: nn.Module | None = None,
        classes: Sequence[int] | Mapping[Any, int] | None = None,
        gives: str | None = None,
        weight: float = 1.0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        fold: bool = False,
    ) -> None:
        source, estimator = behind(source), hasattr(source, "predict_proba")
        a_class, askable = isinstance(source, type), isinstance(source, nn.Module | str | Path) or callable(source)
        if a_class or not (askable or estimator):
            what = f"The class {source.__name__}" if a_class else f"A {type(source).__name__}"
            raise CompressionError(
                f"{what} is no teacher: pass a module, a path, a model with predict_proba or a callable."
            )
        if gives not in (None, *GIVES):
            raise CompressionError(f"Teacher(gives={gives!r}): a teacher gives one of {', '.join(GIVES)}.")
        if not 0 < weight < inf:
            raise CompressionError(f"Teacher(weight={weight}): a weight is above 0; leave the teacher out instead.")
        self.source, self.module, self.weight = source, module, weight
        self.classes = class_map(classes, source)
        self.into = into
        self.gives = gives or ("probabilities" if estimator else "logits")
        self.device, self.dtype = _device(device), _dtype(dtype)
        self.fold = fold
        self._network: nn.Module | Callable[..., Any] | None = None
        self._running: nn.Module | None = None
        self.in_place = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # it never changes: copies of a student share their teachers

    @property
    def name(self) -> str:
        """What errors and reports call it."""
        source = self.source
        if isinstance(source, BoundMethod):
            return f"{type(source.module).__name__}.{source.method}"
        return str(source) if isinstance(source, str | Path) else getattr(source, "__name__", type(source).__name__)

    @property
    def network(self) -> nn.Module | Callable[..., Any]:
        """What is asked; after :meth:`load`."""
        if self._network is None:
            raise CompressionError(f"The teacher {self.name} has not been loaded.")
        return self._network

    @property
    def running(self) -> nn.Module:
        """The module that runs: the network, or the copy that :meth:`prepare` made of it."""
        if self._running is None:
            raise CompressionError(f"The teacher {self.name} has not been prepared, or is no module.")
        return self._running

    def load(self, student_class: type[L.LightningModule]) -> None:
        """Read a file, if the source is one. Idempotent.

        Raises:
            CompressionError: no such file, or it is not of the class.
        """
        if self._network is not None:
            return
        if not isinstance(self.source, str | Path):
            self._network = self.source
        elif not Path(self.source).is_file():
            raise CompressionError(f"There is no checkpoint {str(self.source)!r} to load a teacher from.")
        elif (reader := reader_of(self.source)) is not None:
            self._network = self._read(reader)
        else:
            self._network = self._load_checkpoint(self.module or student_class)

    def _read(self, reader: Callable[..., Any]) -> nn.Module:
        if self.into is None:
            raise CompressionError(
                f"{str(self.source)!r} names no class: say what it is to be loaded into, Teacher(path, into=Network())."
            )
        network: nn.Module = reader(self.source, into=self.into)
        return network

    def _load_checkpoint(self, of: type[L.LightningModule]) -> L.LightningModule:
        try:
            return load_from_checkpoint(of, str(self.source), map_location="cpu")
        except Exception as error:
            raise CompressionError(
                f"{str(self.source)!r} is no checkpoint of {of.__name__}: {error} "
                "Name its class with Teacher(path, module=TheClass)."
            ) from error

    def fingerprint(self) -> str:
        """The hash of what it consists of."""
        return fingerprint(self.network)

    @property
    def treatment(self) -> str:
        """What else its answers depend on."""
        network = self.network
        module = isinstance(network, nn.Module) and not isinstance(network, BoundMethod)
        kind = type(network).__qualname__ if module else self.name
        return f"{kind}/{self.gives}/{self.dtype}/{'folded' if self.fold else 'as it is'}"

    def prepare(self, device: torch.device, call: TracingInput) -> None:
        """Make the copy that runs, where another device, another type or folding asks for one.

        Args:
            device: of the student.
            call: a call of the student; the teacher takes the same arguments.
        """
        network, device = self.network, self.device or device
        if not isinstance(network, nn.Module):
            return
        network = _callable_part(network, call.module, self.name)
        moves = any(tensor.device != device for tensor in network.parameters())
        if moves or self.dtype is not None or self.fold:
            network = self._on(device, private_copy(network))
            for parameter in network.parameters():
                parameter.requires_grad_(False)
            with evaluation_mode(network):
                if self.fold:
                    fold_batchnorm_(network, self._arguments(call, network))
            network = network.to(self.dtype) if self.dtype is not None else network
        self._running = network

    def _on(self, device: torch.device, network: nn.Module) -> nn.Module:
        try:
            return network.to(device)
        except Exception as error:
            raise CompressionError(
                f"The teacher {self.name} cannot be put on {device}: {str(error).rstrip('.')}. Leave device= "
                "out: it runs where the student is."
            ) from error

    @torch.no_grad()
    def ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Its logits for the student's arguments, in single precision or more, where the student is."""
        if self.in_place:
            copied = TracingInput("", args, dict(kwargs)).map(torch.clone)
            args, kwargs = copied.args, copied.kwargs
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        network = self.running if isinstance(self.network, nn.Module) else self.network
        if hasattr(network, "predict_proba"):
            output: object = _ask_estimator(network, first)
        elif isinstance(network, nn.Module):
            with self._own_precision(), evaluation_mode(network):
                call = self._arguments(TracingInput("", args, dict(kwargs)), network)
                output = network(*call.args, **call.kwargs)
        else:
            output = network(*args, **kwargs)
        logits = logits_in(torch.as_tensor(output) if hasattr(output, "__array__") else output).detach()
        if first is not None:
            logits = logits.to(first.device)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return logits.clamp(min=LEAST_PROBABILITY).log() if self.gives == "probabilities" else logits

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Without the fit's autocast, where the teacher has a type of its own."""
        if self.dtype is None:
            return nullcontext()
        device = next((tensor.device.type for tensor in self.running.parameters()), "cpu")
        return torch.autocast(device, enabled=False)

    def _arguments(self, call: TracingInput, network: nn.Module) -> TracingInput:
        """The call's tensors where the network is, in its type."""
        like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), None)
        if like is None:
            return call
        keep = torch.is_autocast_enabled(like.device.type)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(like.device, like.dtype if tensor.is_floating_point() and not keep else tensor.dtype)

        if not call.kwargs and all(isinstance(value, Tensor) for value in call.args):  # in most steps; trees are slow
            return TracingInput(call.module, tuple(move(value) for value in call.args), {})
        return call.map(move)


def as_teachers(teachers: Any) -> list[Teacher]:
    """One teacher or several, of any kind, as a list of :class:`Teacher`.

    Raises:
        CompressionError: there is none.

    >>> [teacher.name for teacher in as_teachers([nn.Identity(), "best.ckpt"])]
    ['Identity', 'best.ckpt']
    """
    several = isinstance(teachers, list | tuple | nn.ModuleList)
    found = [one if isinstance(one, Teacher) else Teacher(one) for one in (teachers if several else [teachers])]
    if not found:
        raise CompressionError("There is no teacher: pass a module, a path or a callable.")
    return found


def _callable_part(network: nn.Module, student: str, name: str) -> nn.Module:
    """The teacher itself, or of a LightningModule without ``forward`` the part that is called as the student is."""
    if not isinstance(network, L.LightningModule) or is_overridden("forward", network):
        return network
    part: nn.Module | None = dict(network.named_modules()).get(student)
    if part is None or part is network:
        raise CompressionError(f"The teacher {name} has no forward: pass the part of it that returns the logits.")
    return part


def _ask_estimator(model: Any, inputs: Tensor | None) -> Tensor:
    if inputs is None:
        raise CompressionError("A model with predict_proba needs a tensor among the student's arguments.")
    probabilities = model.predict_proba(inputs.detach().flatten(1).float().cpu().numpy())
    return torch.as_tensor(probabilities, dtype=torch.float32)


def _device(device: str | torch.device | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError as error:
        raise CompressionError(f'Teacher(device={device!r}): no device; such as "cpu" or "cuda:0".') from error


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise CompressionError(
            f'Teacher(dtype={dtype!r}): a floating-point type of torch, "bfloat16", "float16", "float32" or "float64".'
        )
    return found

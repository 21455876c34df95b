"""Weights seen through a transform while the network runs; keys, Parameters and optimizers stay the user's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, did_you_mean
from lightning_compress.plan import Edit

Transform = Callable[[Tensor], Tensor]
"""Gets the raw Parameter, returns a tensor of its shape through which gradients flow; called at every read."""

_ENTRIES = "_lc_transparent"
_FLAT = "_flat_weights"
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class TransparentWeights:
    """Lets parameters of a module be read through a transform while the module runs.

    During a forward of ``module``, and during the steps of a LightningModule (manual optimization included), reading
    ``layer.weight`` gives ``transform(parameter)``; outside of them the Parameter itself. The layers' classes become
    generated subclasses with a property, so that ``state_dict``, ``named_parameters`` and the optimizer know only the
    plain Parameters, and whoever reads ``layer.weight`` in a forward without calling the layer
    (``nn.MultiheadAttention`` reads ``out_proj.weight``) sees the same as the layer does. Flat weights of RNNs are
    covered. Attention's fast path, which calls no layers, is off meanwhile. Works with ``torch.nn.utils.prune`` in
    either order: what is transformed is the masked weight.

    A deepcopy of the module has transforms (deep copies) and a switch of its own; a pickle, and a copy that was made
    without hooks (:func:`~lightning_compress.surgery.private_copy`), read the raw Parameters. It is a plan
    ``Follower``: nothing but names is kept, Parameters are looked up at each read.

    Args:
        module: the root whose forward switches the transforms on.
        owner: who attaches, for messages.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.constant_(net[0].weight, 0.4)
    >>> weights = TransparentWeights(net)
    >>> weights.attach("0.weight", torch.ceil)
    >>> net(torch.ones(1, 2)).item(), net[0].weight[0, 0].item(), list(net.state_dict())
    (2.0, 0.4000000059604645, ['0.weight'])
    >>> weights.close()
    >>> type(net[0]) is nn.Linear
    True
    """

    def __init__(self, module: nn.Module, owner: str = "TransparentWeights") -> None:
        self._module = module
        self._owner = owner
        self._gate = _Gate()
        self._owners: dict[str, list[tuple[nn.Module, str]]] = {}
        self._transforms: dict[str, Transform] = {}
        self._handles: list[Any] = []

    @property
    def names(self) -> list[str]:
        """The parameters that are seen through a transform."""
        return list(self._transforms)

    def attach(self, parameter_name: str, transform: Transform) -> None:
        """Read the parameter through ``transform`` from now on; a tied one under all its names.

        Args:
            parameter_name: as in ``named_parameters``.
            transform: see :data:`Transform`.

        Raises:
            CompressionError: no such parameter, a computed or scripted one, or one that is transformed already; nothing
                is touched.
        """
        owners = _owners_of(self._module, parameter_name)
        for layer, key in owners:
            taken = layer.__dict__.get(_ENTRIES, {}).get(key)
            if taken is not None:
                raise CompressionError(
                    f"{self._owner} and {taken.owner} would both quantize {parameter_name!r}. Leave it out of one of "
                    f"them: exclude=({parameter_name.rpartition('.')[0] or parameter_name!r},)."
                )
        self._open_gate()
        self._transforms[parameter_name], self._owners[parameter_name] = transform, owners
        for layer, key in owners:
            layer.__dict__.setdefault(_ENTRIES, {})[key] = _Entry(self._gate, transform, self._owner)
            _renew_class(layer)

    def detach(self, parameter_name: str) -> None:
        """Read the parameter as it is again. Does nothing if nothing is attached."""
        self._transforms.pop(parameter_name, None)
        for layer, key in self._owners.pop(parameter_name, []):
            entries = layer.__dict__[_ENTRIES]
            entries.pop(key, None)
            if not entries:
                del layer.__dict__[_ENTRIES]
            _renew_class(layer)

    def close(self) -> None:
        """Take everything off the module. Idempotent."""
        for name in self.names:
            self.detach(name)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _renew_class(self._module)

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Inside, parameters are read through their transforms, as in a forward."""
        with self._gate:
            yield

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Inside, parameters are read as they are, in a forward too."""
        self._gate.blocked += 1
        self._gate.update()
        try:
            yield
        finally:
            self._gate.blocked -= 1
            self._gate.update()

    @contextmanager
    def values(self, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Those of the parameters that have a transform, through it and with its gradient.

        Inside, forwards read these as they are, and all others through their transforms: whoever puts parts of the
        values in the place of the parameters has them transformed once, as a whole.
        """
        owners = {name: self._owners[name] for name in names if name in self._transforms}
        with self.raw():
            found = {name: self._transforms[name](getattr(*places[0])) for name, places in owners.items()}
        entries = [layer.__dict__[_ENTRIES][key] for places in owners.values() for layer, key in places]
        former = [entry.transform for entry in entries]
        try:
            for entry in entries:
                entry.transform = _as_it_is
            with self.seen():
                yield found
        finally:
            for entry, transform in zip(entries, former, strict=True):
                entry.transform = transform

    def follow(self, edit: Edit) -> Callable[[], None]:
        """Where a layer has been replaced, let go of the old one; take up the new one if it has such a parameter."""
        former = dict(self._transforms)
        self._look_up(former)
        return partial(self._look_up, former)

    def _look_up(self, transforms: dict[str, Transform]) -> None:
        for name in self.names:
            self.detach(name)
        present = {name for name, _ in self._module.named_parameters(remove_duplicate=False)}
        for name, transform in transforms.items():
            if name in present or f"{name}_orig" in present:
                self.attach(name, transform)

    def _open_gate(self) -> None:
        """Hooks on the root; the steps find the gate among them."""
        if not self._handles:
            self._gate.fast_path = any(isinstance(m, nn.MultiheadAttention) for m in self._module.modules())
            enter, leave = _Enter(self._gate), _Leave(self._gate)
            self._handles = [
                self._module.register_forward_pre_hook(enter, prepend=True),
                self._module.register_forward_hook(leave, always_call=True),
            ]
            _renew_class(self._module)


def _as_it_is(value: Tensor) -> Tensor:
    return value


class _Gate:
    """Whether the transforms are on: while the root runs. A copy begins closed."""

    def __init__(self) -> None:
        self.open = False
        self.depth = 0
        self.blocked = 0
        self.fast_path = False
        self._had_fast_path = False

    def __enter__(self) -> None:
        if self.depth == 0 and self.fast_path:
            self._had_fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        self.depth += 1
        self.update()

    def __exit__(self, *_: object) -> None:
        if self.depth == 1 and self.fast_path:
            torch.backends.mha.set_fastpath_enabled(self._had_fast_path)
        self.depth = max(0, self.depth - 1)
        self.update()

    def update(self) -> None:
        """A plain flag, which compiled code reads."""
        self.open = self.depth > 0 and self.blocked == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Gate:
        duplicate = _Gate()
        duplicate.fast_path = self.fast_path
        memo[id(self)] = duplicate
        return duplicate

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(_Gate()), "fast_path": self.fast_path}


class _Enter:
    """The root's forward pre-hook."""

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate

    def __call__(self, *_: object) -> None:
        self.gate.__enter__()


class _Leave:
    """The root's forward hook, called after an exception too."""

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate

    def __call__(self, *_: object) -> None:
        self.gate.__exit__()


class _Entry:
    """What a layer knows of one transformed parameter."""

    __slots__ = ("gate", "owner", "transform")

    def __init__(self, gate: _Gate, transform: Transform, owner: str) -> None:
        self.gate, self.transform, self.owner = gate, transform, owner


def _owners_of(root: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """The modules that hold the parameter, and what each calls it; refuses what no property can cover."""
    path, _, key = name.rpartition(".")
    modules = dict(root.named_modules(remove_duplicate=False))
    parameters = dict(root.named_parameters(remove_duplicate=False))
    layer, parameter = modules.get(path), parameters.get(name)
    pruned = parameter is None and layer is not None and f"{key}_orig" in layer._parameters
    if layer is None or not (parameter is not None or pruned):
        computed = layer is not None and hasattr(layer, key)
        hint = (
            "It is computed from others (weight_norm, parametrize): remove the parametrization, or leave it out."
            if computed
            else did_you_mean(name, parameters)
        )
        raise CompressionError(f"The module has no parameter {name!r}. {hint}")
    owners = [(layer, key)] if pruned else []
    for module in modules.values():
        for own, value in module._parameters.items():
            if value is not None and value is parameter and (module, own) not in owners:
                owners.append((module, own))
    for module, _ in owners:
        if isinstance(module, torch.jit.ScriptModule):
            raise CompressionError(f"{path!r} is scripted (torch.jit), so {name!r} cannot be quantized. Leave it out.")
    return owners


def make_plain_(module: nn.Module) -> None:
    """Take every transform off, of a copy too; for copies that outlive the fit in which they were made."""
    for part in module.modules():
        part.__dict__.pop(_ENTRIES, None)
        for hooks, kind in ((part._forward_pre_hooks, _Enter), (part._forward_hooks, _Leave)):
            for number in [number for number, hook in hooks.items() if isinstance(hook, kind)]:
                del hooks[number]
        _renew_class(part)


# -- generated classes ------------------------------------------------------------------------------------------------


def _renew_class(module: nn.Module, base: type[nn.Module] | None = None) -> None:
    """Give ``module`` the class that what is attached to it needs; its own, or now ``base``, where nothing is."""
    base = base or cast(type[nn.Module], getattr(type(module), "_lc_base", type(module)))
    names = frozenset(module.__dict__.get(_ENTRIES, ()))
    gated = any(isinstance(hook, _Enter) for hook in module._forward_pre_hooks.values())
    module.__class__ = cast(Any, _class_for)(base, names, gated) if names or gated else base


@functools.cache
def _class_for(base: type[nn.Module], names: frozenset[str], gated: bool) -> type[nn.Module]:
    """A subclass of ``base`` called the same, with a property for each name and steps that open the gate."""
    members: dict[str, Any] = {name: _property(name) for name in names}
    if names and issubclass(base, nn.RNNBase):
        members[_FLAT] = property(_get_flat_weights, _set_flat_weights)
    if gated:
        for name in _STEPS:
            own = getattr(base, name, None)
            if own is not None and own is not _lightning_default(base, name):
                members[name] = _step(own)
    members |= {
        "_lc_base": base,
        "_lc_rebase": _renew_class,  # for an edit that makes another layer of it
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__deepcopy__": _deepcopy,
        "__reduce_ex__": _reduce_ex,
    }
    return type(base.__name__, (base,), members)


def _lightning_default(base: type[nn.Module], name: str) -> Any:
    """The method as Lightning defines it: not overridden by the user, who does not want it called."""
    first = next(
        (one for one in base.__mro__ if one.__module__.split(".")[0] in ("lightning", "pytorch_lightning")), None
    )
    return getattr(first, name, None)


def _property(name: str) -> property:
    def read(self: nn.Module) -> Any:
        value = self._parameters.get(name)
        if value is None:
            if name not in self._parameters and name not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value = self.__dict__.get(name)  # a masked weight of torch.nn.utils.prune
        entry = self.__dict__[_ENTRIES][name]
        return _seen_through(entry.transform, value) if entry.gate.open and value is not None else value

    def write(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    def delete(self: nn.Module) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self.__dict__[name]

    return property(read, write, delete)


def _seen_through(transform: Transform, value: Tensor) -> Tensor:
    try:
        return transform(value)
    except AttributeError as error:  # in a property it would send nn.Module to the raw Parameter
        raise RuntimeError(f"A weight's transform failed: {error}") from error


def _get_flat_weights(self: nn.RNNBase) -> Any:
    if _FLAT not in self.__dict__:
        raise AttributeError(_FLAT)
    if _any_open(self):
        return [getattr(self, name, None) for name in self._flat_weights_names]
    return self.__dict__[_FLAT]


def _set_flat_weights(self: nn.RNNBase, value: Any) -> None:
    if not _any_open(self):  # in a forward it would write down what the transforms made
        self.__dict__[_FLAT] = value


def _any_open(layer: nn.Module) -> bool:
    return any(entry.gate.open for entry in layer.__dict__.get(_ENTRIES, {}).values())


def _step(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def step(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gates = [hook.gate for hook in self._forward_pre_hooks.values() if isinstance(hook, _Enter)]
        with ExitStack() as stack:
            for gate in gates:
                stack.enter_context(gate)
            return own(self, *args, **kwargs)

    return step


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy sees its weights through copies of the transforms."""
    function, args, state, *_ = cast(tuple[Any, ...], super(type(self), self).__reduce_ex__(4))
    duplicate: Any = function(*args)
    memo[id(self)] = duplicate
    duplicate.__setstate__(copy.deepcopy(state, memo))
    return cast(nn.Module, duplicate)


def _new(base: type[nn.Module]) -> nn.Module:
    return base.__new__(base)


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """A pickle is of the user's class and knows nothing of us."""
    function, args, state, *rest = cast(tuple[Any, ...], super(type(self), self).__reduce_ex__(max(protocol, 2)))
    base = type(self).__dict__["_lc_base"]
    if getattr(function, "__name__", "") == "__newobj__":  # pickle insists on the object's own class there
        function, args = _new, (base,)
    state = {key: value for key, value in state.items() if key != _ENTRIES}
    for key, kind in (("_forward_pre_hooks", _Enter), ("_forward_hooks", _Leave)):
        hooks = state[key]
        state[key] = type(hooks)((number, hook) for number, hook in hooks.items() if not isinstance(hook, kind))
    return function, args, state, *rest

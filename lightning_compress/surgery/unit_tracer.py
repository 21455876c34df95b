"""Follows units through whatever a network computes: each operation that moves entries moves their labels too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_compress.surgery.labels import Labels, compressed, varies
from lightning_compress.surgery.tracing import tensors_in

MOVES = frozenset(
    [
        "permute",
        "transpose",
        "t",
        "expand",
        "squeeze",
        "unsqueeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "chunk",
        "unbind",
        "cat",
        "stack",
        "index_select",
        "index",
        "flip",
        "roll",
        "repeat",
        "constant_pad_nd",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "unfold",
        "diagonal",
        "gather",
        "tril",
        "triu",
        "repeat_interleave",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "movedim",
        "narrow",
        "swapaxes",
    ]
)
"""Operations that only move entries: done to the labels as to the values."""
SPLITS = frozenset(["split", "split_with_sizes", "unsafe_split", "chunk"])
RESHAPES = frozenset(["view", "_unsafe_view", "reshape", "flatten", "unflatten", "_reshape_alias"])
COPIES = frozenset(["clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy"])
"""Operations whose result has the very labels of their first argument."""
ELEMENTWISE = frozenset(
    ["_softmax", "_log_softmax", "cumsum", "cumprod", "native_dropout", "bernoulli", "_safe_softmax", "hardswish"]
)
"""Like those tagged as pointwise; where zero is not neutral the trial cut shows it."""
REDUCTIONS = frozenset(
    [
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "prod",
        "any",
        "all",
    ]
)
UNLABELLED = frozenset(
    [
        "argmax",
        "argmin",
        "argsort",
        "_local_scalar_dense",
        "equal",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "is_nonzero",
        "sym_size",
        "nonzero",
        "topk",
        "sort",
        "isfinite",
        "bincount",
    ]
)
"""Operations whose result belongs to no unit."""
SPATIAL = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "upsample_")
LARGEST = 2**23
"""Entries of a parameter outside of layers that are followed one by one."""


class UnitTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels every tensor of a run; what happens inside a layer with a rule of its own is left to that rule.

    Args:
        labels: receives what is joined and refused.
        known: tensors that belong to no layer with a rule, by ``id``: they get their labels from this when first used.
        even: where units are split into parts of equal length, those at the same place of each part are one unit.
    """

    def __init__(self, labels: Labels, known: Mapping[int, Callable[[], Tensor]], *, even: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = labels
        self._even = even
        self.inside = 0
        self._known = known
        self._of: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor too, so that its id stays its own

    def pause(self) -> None:
        """Follow nothing until :meth:`resume` has been called as often."""
        if self.inside == 0:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.inside += 1

    def resume(self) -> None:
        """Follow again."""
        self.inside -= 1
        if self.inside == 0:
            self.__enter__()  # type: ignore[no-untyped-call]

    def get(self, tensor: Tensor) -> Tensor | None:
        """The labels of ``tensor``; None where it has none."""
        if id(tensor) in self._of:
            return self._of[id(tensor)][1]
        if id(tensor) in self._known:
            self.set(tensor, self._known[id(tensor)]())
            return self._of[id(tensor)][1]
        return None

    def set(self, tensor: Tensor, labels: Tensor | None) -> None:
        """Label ``tensor``."""
        if labels is None:
            self._of.pop(id(tensor), None)
        else:
            self._of[id(tensor)] = tensor, labels

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, then do the like to the labels."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [tensor for tensor in tensors_in((args, dict(kwargs))) if self.get(tensor) is not None]
        if inputs:
            self._follow(func, args, kwargs, out, inputs)
        return out

    def _follow(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, inputs: list[Tensor]
    ) -> None:
        name = func._schema.name.removeprefix("aten::")
        plain = name.rstrip("_") if name != "t_" else "t"
        written = name.endswith("_") and not name.endswith("__")
        outputs = list(tensors_in(out))
        if plain in UNLABELLED:
            return
        if written and getattr(args[0], "_base", None) is not None and plain not in MOVES:
            self._refuse([*inputs, *outputs], f"its units meet {name!r} on a part of a tensor, which is not followed")
        elif plain in RESHAPES:
            found = compressed(self._first(args).reshape(out.shape))
            self.set(out, found)
            if self._even:
                for dim in _split_dims(args[0].shape, out.shape):
                    self.labels.join(found, found.narrow(dim, 0, 1))
        elif plain in COPIES:
            self.set(out, self._first(args))
        elif plain == "copy":
            self.set(out, None)
            self._pointwise([args[1]], out)
        elif plain in MOVES:
            self._move(func, args, kwargs, outputs)
        elif torch.Tag.pointwise in func.tags or plain in ELEMENTWISE:
            self._pointwise(list(tensors_in((args, dict(kwargs)))), outputs[0])
        elif plain in REDUCTIONS:
            self._reduce(func, args, kwargs, outputs)
        elif plain in ("mm", "bmm"):
            self.set(out, self._contract(self._or_none(args[0]), self._or_none(args[1]), out.shape))
        elif plain in ("addmm", "baddbmm"):
            self.set(out, self._contract(self._or_none(args[1]), self._or_none(args[2]), out.shape))
            self._pointwise([out, args[0]], out)
        elif plain.startswith("_scaled_dot_product"):
            self._attend(args[0], args[1], args[2], outputs[0])
        elif plain.startswith(SPATIAL):
            self._pool(plain, args[0], outputs)
        elif plain == "native_layer_norm":
            self._pointwise([tensor for tensor in args if isinstance(tensor, Tensor)], outputs[0])
        else:
            self._refuse(inputs, f"its units meet the operation {plain!r}, which is not followed")

    def _refuse(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            labels = self.get(tensor)
            if labels is not None:
                self.labels.refuse(labels, reason)

    def _or_none(self, tensor: Tensor) -> Tensor:
        """The labels of ``tensor``; zeros where it has none."""
        found = self.get(tensor)
        return torch.zeros((), dtype=torch.int64).expand(tensor.shape) if found is None else found

    def _first(self, args: Sequence[Any]) -> Tensor:
        return self._or_none(args[0])

    def _move(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> None:
        first, *rest = args
        own: Any = self._or_none(first) if isinstance(first, Tensor) else [self._or_none(one) for one in first]
        name = func._schema.name.removeprefix("aten::")
        if name == "constant_pad_nd":
            rest = rest[:1]
        if name.startswith(("reflection_pad", "replication_pad")):
            own = own.double()
        if name.endswith("_"):  # of the shape that it had before
            func = getattr(torch.ops.aten, name.rstrip("_") or "t")
        moved = list(tensors_in(func(own, *rest, **kwargs)))
        for output, labels in zip(outputs, moved, strict=True):
            self.set(output, compressed(labels.long()))
        if self._even and name in SPLITS and len({labels.shape for labels in moved}) == 1:
            for labels in moved[1:]:
                self.labels.join(labels, moved[0])

    def _pointwise(self, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Entries at one place are of one unit; what is spread over different units (a mask, a gate) joins none."""
        found = [labels for labels in map(self.get, tensors) if labels is not None and labels.dim() <= out.dim()]
        if not found:
            return
        wide = [labels.expand(out.shape) for labels in found]
        spread = [{dim for dim in range(out.dim()) if varies(labels, dim)} for labels in wide]
        order = sorted(range(len(wide)), key=lambda place: -len(spread[place]))
        main, seen = wide[order[0]], spread[order[0]]
        for place in order[1:]:
            labels = found[place].reshape([1] * (out.dim() - found[place].dim()) + list(found[place].shape))
            if any(labels.size(dim) == 1 < out.size(dim) for dim in seen):
                continue
            self.labels.join(main, wide[place])
            main = torch.where(main == 0, wide[place], main) if bool((main == 0).any()) else main
        self.set(out, main)

    def _reduce(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> None:
        """Over entries of one unit the result is that unit's; over different ones nobody's."""
        given = dict(kwargs) | {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
        labels, dim = self._first(args), given.get("dim")
        if isinstance(dim, Tensor):  # max(one, other)
            return self._pointwise([args[0], args[1]], outputs[0])
        dims = list(range(labels.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
        if any(varies(labels, one) for one in dims):
            small, large = labels.amin(dims, keepdim=True), labels.amax(dims, keepdim=True)
            labels = torch.where(small == large, small, 0)
        for one in dims:
            labels = labels.narrow(one, 0, 1)
        for output in outputs:
            if output.numel() == labels.numel():
                self.set(output, labels.reshape(output.shape))
        return None

    def _contract(self, one: Tensor, two: Tensor, shape: Sequence[int]) -> Tensor:
        """Labels of a matrix product of (..., n, k) and (..., k, m).

        What is multiplied with each other is joined. If the sum runs over different units and each matrix of the batch
        has units of its own, they are heads: all of a matrix's entries are one unit, and so is its product.
        """
        if one.dim() != two.dim():
            one, two = one.expand(*shape[:-2], *one.shape[-2:]), two.expand(*shape[:-2], *two.shape[-2:])
        self.labels.join(one.unsqueeze(-1), two.unsqueeze(-3))
        batch = range(one.dim() - 2)
        if not (varies(one, -1) or varies(two, -2)):
            left, right = one.narrow(-1, 0, 1).expand(shape), two.narrow(-2, 0, 1).expand(shape)
            main, other = (right, left) if varies(right, -1) else (left, right)
            return torch.where(main == 0, other, main) if bool((main == 0).any()) else main
        if not any(varies(labels, dim) for labels in (one, two) for dim in batch):
            return torch.zeros((), dtype=torch.int64).expand(tuple(shape))
        head = torch.maximum(one.amax((-2, -1), keepdim=True), two.amax((-2, -1), keepdim=True))
        self.labels.join(one, head)
        self.labels.join(two, head)
        return compressed(head.expand(tuple(shape)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        scores = (*query.shape[:-1], key.shape[-2])
        weights = self._contract(self._or_none(query), self._or_none(key).transpose(-1, -2), scores)
        self.set(out, self._contract(weights, self._or_none(value), out.shape))

    def _pool(self, name: str, tensor: Tensor, outputs: Sequence[Tensor]) -> None:
        """Pooling and interpolation: positions are mixed, channels are not."""
        labels = self._or_none(tensor)
        count = next((int(digit) for digit in "123" if f"{digit}d" in name), 2)
        count = {"upsample_linear1d": 1, "upsample_trilinear3d": 3}.get(name, count)
        positions = range(tensor.dim() - count, tensor.dim())
        if any(varies(labels, dim) for dim in positions):
            self.labels.refuse(labels, f"its units meet {name!r}, which would mix them")
            return
        for dim in positions:
            labels = labels.narrow(dim, 0, 1)
        for output in outputs:
            self.set(output, labels.expand(output.shape))


def parameter_labels(labels: Labels, parameter: Tensor) -> Callable[[], Tensor]:
    """Labels of a tensor that belongs to no layer: each entry its own, until it meets units."""
    return lambda: labels.fresh(parameter.numel()).view(parameter.shape)


def _split_dims(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Dimensions of ``after`` that number the parts into which one dimension of ``before`` is split.

    >>> _split_dims((4, 12, 5), (4, 3, 2, 2, 5))
    [1, 2]
    """
    found, one, two = [], 0, 0
    while one < len(before) and two < len(after):
        first, second, left, right = one, two, before[one], after[two]
        while left != right:
            if left < right:
                one += 1
                left *= before[one]
            else:
                two += 1
                right *= after[two]
        if first == one and second < two:
            found += [dim for dim in range(second, two) if after[dim] > 1]
        one, two = one + 1, two + 1
    return found

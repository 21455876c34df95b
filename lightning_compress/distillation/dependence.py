"""Which outputs a loss was computed from: found in the graph that autograd keeps of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_compress.surgery.tracing import tensors_in


def depends(loss: Tensor, outputs: Sequence[Any]) -> list[bool]:
    """For each of ``outputs``, tensors in any containers, whether ``loss`` was computed from it.

    The graph is walked from the loss until all of them are found, which in most steps takes a few nodes.

    >>> import torch
    >>> one, other = torch.ones(2, requires_grad=True) * 2, torch.ones(2, requires_grad=True) * 3
    >>> depends(one.sum() * 5, [one, {"logits": other}])
    [True, False]
    """
    sought: dict[Any, list[int]] = {}
    for number, output in enumerate(outputs):
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                sought.setdefault(tensor.grad_fn, []).append(number)
    found: set[int] = set()
    wanted = {number for numbers in sought.values() for number in numbers}
    seen, ahead = {loss.grad_fn}, deque([loss.grad_fn])
    while ahead and found != wanted:
        node = ahead.popleft()
        if node is None:
            continue
        found.update(sought.get(node, ()))
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                ahead.append(following)
    return [number in found for number in range(len(outputs))]

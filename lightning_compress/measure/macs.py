"""Products that torch's flop counter leaves out, in its own terms: two flops for each multiply-accumulate."""

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
Shape = torch.Size


def matrix_vector_flops(matrix: Shape, vector: Shape, **_: Any) -> int:
    """Flops of a matrix (rows, columns) times a vector (columns)."""
    return 2 * matrix.numel()


def add_matrix_vector_flops(added: Shape, matrix: Shape, vector: Shape, **_: Any) -> int:
    """Flops of a matrix (rows, columns) times a vector (columns), added to another."""
    return 2 * matrix.numel()


def dot_flops(left: Shape, right: Shape, **_: Any) -> int:
    """Flops of the inner product of two vectors."""
    return 2 * left.numel()


def add_batched_flops(added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    """Flops of the products of (N, rows, inner) and (N, inner, columns), summed over N."""
    return 2 * left.numel() * right[-1]


def matrix_flops(left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    """Flops of a matrix (rows, inner) times a matrix (inner, columns)."""
    return 2 * left.numel() * right[-1]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Flops of query (N, heads, length, width) against key and value, masked positions included."""
    queries = query[:-1].numel()
    return 2 * queries * key[-2] * (query[-1] + value[-1])


def bilinear_flops(left: Shape, weight: Shape, right: Shape, *_: Any, **__: Any) -> int:
    """Flops of x W y for x (N, first), W (out, first, second) and y (N, second): x W first, then its product with y."""
    samples = left[:-1].numel()
    outputs, first, second = weight
    return 2 * samples * outputs * second * (first + 1)


PRODUCTS: dict[Any, Callable[..., int]] = {
    aten.mv: matrix_vector_flops,
    aten.addmv: add_matrix_vector_flops,
    aten.dot: dot_flops,
    aten.vdot: dot_flops,
    aten.addbmm: add_batched_flops,
    aten._int_mm: matrix_flops,
    aten._trilinear: bilinear_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
}

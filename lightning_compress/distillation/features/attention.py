"""Attention transfer."""

from torch import Tensor
from torch.nn.functional import normalize

from lightning_compress.distillation.adapters import to_positions, to_rows
from lightning_compress.distillation.precision import full_precision
from lightning_compress.errors import CompressionError


@full_precision
def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the normalised attention maps: where the features are strong, whatever their channels.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928 (sum of squares over
    channels).

    Args:
        student: maps (N, channels, height, width) or tokens (N, length, channels).
        teacher: likewise; other positions are pooled or interpolated.

    Raises:
        CompressionError: features without positions.

    >>> import torch
    >>> maps = torch.rand(2, 3, 4, 4)
    >>> attention(2 * maps, maps).item() < 1e-10
    True
    """
    if min(student.dim(), teacher.dim()) < 3:
        raise CompressionError(
            f"Attention has no positions to look at in features of shape {tuple(student.shape)}: "
            'tap a layer with maps or tokens, or use loss="similarity".'
        )
    squares = to_positions(student.square().mean(dim=_channel_dim(student), keepdim=True), teacher)
    maps = [rows.mean(dim=-1).flatten(1) for rows in (squares, to_rows(teacher.square()))]
    found, expected = (normalize(one, dim=1) for one in maps)
    return (found - expected).square().mean()


def _channel_dim(features: Tensor) -> int:
    return 1 if features.dim() > 3 else -1

"""What an ``nn.MultiheadAttention`` becomes once heads of it have been taken out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.errors import CompressionError


class FewerHeads(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` with fewer heads than its width has room for.

    ``torch.nn``'s own insists on ``num_heads * head_dim == embed_dim``, in its forward and in the fused operation of
    ``nn.TransformerEncoderLayer``. This one has the same parameters under the same names, of which the heads that are
    gone have no rows, takes the same arguments and gives the same results as if those heads were zero. In evaluation
    ``nn.TransformerEncoderLayer`` runs its plain operations with it, of which fewer heads make fewer. None is built:
    :func:`settle_` turns a module into it, and back, as ``num_heads`` changes.

    >>> from lightning_compress.plan import Attribute, KeepIndices, Slice
    >>> attention, rows = nn.MultiheadAttention(4, 2), torch.tensor([0, 1, 4, 5, 8, 9])
    >>> cuts = [("in_proj_weight", 0, 12, rows), ("in_proj_bias", 0, 12, rows), ("out_proj.weight", 1, 4, rows[:2])]
    >>> edit = KeepIndices(tuple(Slice(*cut) for cut in cuts), (Attribute("", "num_heads", 2, 1),))
    >>> inverse = edit.apply(attention)
    >>> x = torch.randn(5, 3, 4)
    >>> type(attention).__name__, attention(x, x, x)[0].shape
    ('FewerHeads', torch.Size([5, 3, 4]))
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """By this ``nn.TransformerEncoderLayer`` decides for its fused operation, which wants all heads."""
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As that of ``nn.MultiheadAttention``; weights are those of the heads that are left.

        Raises:
            CompressionError: a mask for each of the heads that there were.
        """
        if query.is_nested:
            return self._of_nested(query), None
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = self._projected(query, key, value)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(q, key.shape[1], k.shape[2], attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            heads = weights @ v
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        output = functional.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head, (batch, heads, length, head_dim), with the extra keys that it has."""
        weights: tuple[Tensor, ...] = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = map(functional.linear, (query, key, value), weights, biases)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(len(x), -1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (functional.pad(tensor, (0, 0, 0, 1)) for tensor in (k, v))
        shape = (len(q), -1, self.num_heads, self.head_dim)
        return q.reshape(shape).transpose(1, 2), k.reshape(shape).transpose(1, 2), v.reshape(shape).transpose(1, 2)

    def _mask(
        self, q: Tensor, keys: int, all_keys: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores, broadcasting to (batch, heads, queries, all keys)."""
        total = None
        if attn_mask is not None:
            if attn_mask.dim() == 3 and attn_mask.shape[0] != len(q) * self.num_heads:
                raise CompressionError(
                    f"attn_mask has {attn_mask.shape[0]} masks for a batch of {len(q)} with {self.num_heads} heads: "
                    "some heads have been taken out. Give one mask, of (queries, keys), for all of them."
                )
            total = _added(attn_mask, q)
            total = total if total.dim() == 2 else total.reshape(len(q), self.num_heads, *total.shape[1:])
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None, :]
            total = padding if total is None else total + padding
        return None if total is None else functional.pad(total, (0, all_keys - keys))

    def _of_nested(self, value: Tensor) -> Tensor:
        """Self-attention of sequences of unequal lengths: what ``nn.TransformerEncoder`` makes of padded ones."""
        rows = value.unbind()
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=padded.device)
        gone = torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]
        if not self.batch_first:
            padded = padded.transpose(0, 1)
        output, _ = self(padded, padded, padded, key_padding_mask=gone, need_weights=False)
        output = output if self.batch_first else output.transpose(0, 1)
        return torch.nested.as_nested_tensor([one[: len(row)] for one, row in zip(output, rows, strict=True)])


def has_plain_heads(module: nn.Module) -> bool:
    """Whether ``module`` is an ``nn.MultiheadAttention``, or what it became, and not of somebody else's making."""
    return _kind(module) in (nn.MultiheadAttention, FewerHeads)


def settle_(module: nn.Module) -> None:
    """Give an attention the class that its number of heads asks for, in place; leave all else alone.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> attention.num_heads = 1
    >>> settle_(attention)
    >>> type(attention).__name__
    'FewerHeads'
    """
    if has_plain_heads(module):
        attention: Any = module
        whole = attention.num_heads * attention.head_dim == attention.embed_dim
        kind = nn.MultiheadAttention if whole else FewerHeads
        if type(attention) is _kind(attention):
            attention.__class__ = kind
        else:
            attention._lc_rebase(kind)


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, or the one from which a class has been generated for it, as fake quantization does."""
    return getattr(type(module), "_lc_base", type(module))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of what is left out, or of what is added, as what is added."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))

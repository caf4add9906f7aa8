"""Multi-head attention whose heads can be fewer than its width asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` with projections of their own, from which heads can go.

    torch's class keeps queries, keys and values in one parameter and its heads as wide as the
    model, so that no head can be removed from it.

    Args:
        embed_dim: size of the queries and of the result.
        num_heads: number of heads.
        dropout: probability with which attention weights are dropped in training.
        bias: whether the projections have biases.
        kdim: size of the keys; None: embed_dim.
        vdim: size of the values; None: embed_dim.
        batch_first: whether tensors are [batch, tokens, size] rather than [tokens, batch, size].
    """

    # What torch.nn.TransformerEncoderLayer looks at before it takes its fused path, which it
    # must not do here.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim must be a multiple of num_heads, got {embed_dim} "
                f"and {num_heads}"
            )
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.k_proj = nn.Linear(kdim or embed_dim, embed_dim, bias)
        self.v_proj = nn.Linear(vdim or embed_dim, embed_dim, bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias)

    @classmethod
    def from_torch(cls, layer: nn.MultiheadAttention) -> MultiheadAttention:
        """The same layer, with the same weights, flags and mode.

        Raises:
            ValueError: the layer has add_bias_kv or add_zero_attn.
        """
        if layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("MultiheadAttention: add_bias_kv and add_zero_attn are not supported")
        fused, out = layer.in_proj_bias, layer.out_proj
        size = (layer.embed_dim, layer.num_heads, layer.dropout, fused is not None)
        with torch.device("meta"):
            new = cls(*size, layer.kdim, layer.vdim, layer.batch_first)
        if layer.in_proj_weight is not None:
            weights = [(layer.in_proj_weight, i) for i in range(3)]
        else:
            separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
            weights = [(weight, 0) for weight in separate]
        width = layer.embed_dim
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            projection = new.get_submodule(name)
            weight, part = weights[i]
            rows = slice(part * width, (part + 1) * width)
            projection.weight = _parameter(weight.detach()[rows], weight.requires_grad)
            if fused is not None:
                rows = slice(i * width, (i + 1) * width)
                projection.bias = _parameter(fused.detach()[rows], fused.requires_grad)
        new.out_proj.weight = _parameter(out.weight.detach(), out.weight.requires_grad)
        if out.bias is not None:
            new.out_proj.bias = _parameter(out.bias.detach(), out.bias.requires_grad)
        return new.train(layer.training)

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
        """As ``torch.nn.MultiheadAttention``, and the same results.

        ``is_causal`` is a hint about ``attn_mask``, which must be given with it.
        """
        if is_causal and attn_mask is None:
            raise ValueError("MultiheadAttention: is_causal needs attn_mask, got none")
        batched = query.dim() == 3
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        mask = self._mask(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.mT * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            context = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            context = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add to the scores [batch, heads, queries, keys]."""
        if mask is not None:
            mask = _additive(mask, q.dtype)
            if mask.dim() == 3:  # [batch * heads, ...]; all heads that were, so none may be gone
                mask = mask.view(len(q), -1, *mask.shape[1:])
        if padding is not None:
            padding = _additive(padding if padding.dim() == 2 else padding[None], q.dtype)
            padding = padding[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask, true where nothing may be seen, as minus infinity to add."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def _parameter(values: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=requires_grad)

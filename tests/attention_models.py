"""Attention of the kinds that heads can be removed from, and what comes with it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class FusedAttention(nn.Module):
    """As timm.models.vision_transformer.Attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = num_heads, dim // num_heads, dim
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(B, N, self.attn_dim))


class ByHeadAttention(nn.Module):
    """As GPT-NeoX: the rows of each head's query, key and value together."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_size = dim // heads
        self.query_key_value, self.dense = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        qkv = self.query_key_value(x).view(*x.shape[:2], -1, 3 * self.head_size).transpose(1, 2)
        x = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return self.dense(x.transpose(1, 2).flatten(2)), None


class GroupedAttention(nn.Module):
    """Query heads that share key/value heads, in one projection, as Phi-3."""

    def __init__(self, dim: int, heads: int, key_value_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.num_heads, self.num_key_value_heads = heads, key_value_heads
        self.num_key_value_groups = heads // key_value_heads
        self.qkv_proj = nn.Linear(dim, (heads + 2 * key_value_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.num_key_value_heads
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([heads.shape[1] - 2 * shared, shared, shared], dim=1)
        k, v = (t.repeat_interleave(self.num_key_value_groups, 1) for t in (k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScaleBlock(nn.Module):
    """A block as in timm: pre-norm, LayerScale parameters."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        attended = attended[0] if isinstance(attended, tuple) else attended
        return self.gamma * self.mlp(self.norm2(x + attended)) + x + attended


class ViT(nn.Module):
    """As timm's VisionTransformer: class token, position embeddings, pooled from the token."""

    def __init__(self, attention=FusedAttention, width: int = 16, **options) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        blocks = (LayerScaleBlock(width, attention(width, 4, **options)) for _ in range(2))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """torch.nn's own."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 48, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class GroupNormNet(nn.Module):
    """Convolutions whose channels are normalized in groups, and all together."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(12, 12), nn.ReLU(),
            nn.Conv2d(12, 10, 3, padding=1), nn.GroupNorm(1, 10), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Conv1dNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(3, 16, 5, stride=2, padding=2), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=16), nn.ReLU(),
            nn.Conv1d(16, 12, 3, padding=1, padding_mode="circular"), nn.ReLU(),
            nn.Flatten(), nn.Linear(12 * 12, CLASSES),
        )  # fmt: skip


class RMSNorm(nn.Module):
    """As LlamaRMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class NormedMLP(nn.Sequential):
    """torch's RMSNorm and another's."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(12, 24), nn.RMSNorm(24), nn.ReLU(),
            nn.Linear(24, 16), RMSNorm(16), nn.ReLU(), nn.Linear(16, CLASSES),
        )  # fmt: skip

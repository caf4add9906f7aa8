"""The table of attention that heads can be removed from: how each kind keeps them.

A kind is known by the layers that it is made of, not by its class: Llama, Qwen2, Mistral and
Gemma are one row. A unit is a head, or under grouped-query attention a key/value head together
with all query heads that read it; of one single key/value head, the query heads are the units.

A gated MLP whose gate and values come from one layer is a row too: each channel of the product is
a head of one channel, and of two parts instead of three.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        projections: the layers that make queries, keys and values, or one that makes all three.
        output: the layer behind the heads; None where another module holds it.
        by_head: whether the rows of a fused projection are those of each head together, rather
            than all queries, all keys, all values.
        parts: what each head is made from: query, key and value, or gate and value.
    """

    projections: tuple[str, ...]
    output: str | None
    by_head: bool = False
    parts: int = 3


KINDS = (
    Kind(("q_proj", "k_proj", "v_proj"), "o_proj"),  # transformers: Llama, Qwen, Mistral, ViT
    Kind(("q_proj", "k_proj", "v_proj"), "out_proj"),  # CLIP, BART, OPT; simmim_ext.nn
    Kind(("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
    Kind(("query", "key", "value"), None),  # BERT, RoBERTa, ELECTRA
    Kind(("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    Kind(("qkv",), "proj"),  # timm's ViT
    Kind(("c_attn",), "c_proj"),  # GPT-2
    Kind(("qkv_proj",), "o_proj"),  # Phi-3
    Kind(("query_key_value",), "dense", by_head=True),  # GPT-NeoX
    Kind(("gate_up_proj",), "down_proj", parts=2),  # the MLP of Phi-3 and GLM
)

# Attributes in which modules keep the sizes that change with the heads.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size")
_WIDTHS = ("all_head_size", "attn_dim", "split_size", "embed_dim", "inner_dim")


@dataclass(frozen=True)
class Attention:
    """One attention of a model.

    Attributes:
        name: qualified name of its module.
        kind: its row of the table.
        heads: number of query heads.
        key_value_heads: number of key/value heads.
        head_dim: channels of a head.
        attributes: (attribute of the module, what one unit adds to it).
    """

    name: str
    kind: Kind
    heads: int
    key_value_heads: int
    head_dim: int
    attributes: tuple[tuple[str, int], ...]

    @property
    def units(self) -> int:
        """How many units it has."""
        return self.heads if self.key_value_heads == 1 else self.key_value_heads

    @property
    def channels(self) -> int:
        """Channels of a unit's output, which the layer behind the heads reads."""
        return self.heads // self.units * self.head_dim

    def rows(self) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Each projection's output channels that belong to units: (layer, (channel, unit) ...)."""
        shared = self.key_value_heads == 1 < self.heads  # the one key/value head stays
        parts = [(self.heads, self.channels)]
        parts += [(self.key_value_heads, 0 if shared else self.head_dim)] * (self.kind.parts - 1)
        separate = len(self.kind.projections) == 3
        fused: list[tuple[int, int]] = []
        start = 0
        for i, (heads, size) in enumerate(parts):
            channels = range(heads * self.head_dim)
            if self.kind.by_head:
                where = [c // self.head_dim * 3 * self.head_dim for c in channels]
                where = [
                    w + i * self.head_dim + c % self.head_dim
                    for w, c in zip(where, channels, strict=True)
                ]
            else:
                where = [start + c for c in channels]
            pairs = [(w, c // size) for w, c in zip(where, channels, strict=True)] if size else []
            if separate:
                yield self.kind.projections[i], pairs
            else:
                fused += pairs
                start += len(channels)
        if not separate:
            yield self.kind.projections[0], sorted(fused)


def find_attention(model: nn.Module) -> dict[str, Attention]:
    """The model's attention of known kinds, by qualified name."""
    found = (_match(name, module) for name, module in model.named_modules())
    return {attention.name: attention for attention in found if attention is not None}


def _match(name: str, module: nn.Module) -> Attention | None:
    children = dict(module.named_children())
    for kind in KINDS:
        layers = [children.get(layer) for layer in (*kind.projections, kind.output) if layer]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        sizes = _sizes(module, kind, [layer for layer in layers if isinstance(layer, nn.Linear)])
        if sizes is None or not _plain(module, kind, sizes[2]):
            continue
        heads, key_value_heads, head_dim = sizes
        attention = Attention(name, kind, heads, key_value_heads, head_dim, ())
        per_unit = heads // attention.units
        shared = key_value_heads == 1 < heads
        attributes = [(a, per_unit) for a in _HEADS if _integer(module, a) == heads]
        if not shared:
            attributes += [
                (a, 1) for a in _KEY_VALUE_HEADS if _integer(module, a) == key_value_heads
            ]
        else:
            attributes += [
                (a, 1) for a in ("num_key_value_groups",) if _integer(module, a) == heads
            ]
        width = heads * head_dim
        attributes += [(a, per_unit * head_dim) for a in _WIDTHS if _integer(module, a) == width]
        return Attention(name, kind, *sizes, tuple(attributes))
    return None


def _sizes(module: nn.Module, kind: Kind, layers: list[nn.Linear]) -> tuple[int, int, int] | None:
    """Query heads, key/value heads and channels of a head, by the layers' shapes."""
    if kind.parts == 2:
        width = layers[-1].in_features
        return (width, width, 1) if layers[0].out_features == 2 * width else None
    given = next((h for h in (_integer(module, a) for a in _HEADS) if h), None)
    outputs = [layer.out_features for layer in layers]
    fused = len(kind.projections) == 1
    head_dim = next((d for d in (_integer(module, a) for a in _HEAD_SIZES) if d), None)
    if head_dim is None and given is not None:
        head_dim = (outputs[0] // 3 if fused else outputs[0]) // given
    if not head_dim or any(size % head_dim for size in outputs[: len(kind.projections)]):
        return None
    if fused:
        total = outputs[0] // head_dim
        stated = next((h for h in (_integer(module, a) for a in _KEY_VALUE_HEADS) if h), None)
        key_value_heads = total // 3 if stated is None else stated
        heads = total - 2 * key_value_heads
    else:
        heads, key_value_heads = outputs[0] // head_dim, outputs[1] // head_dim
        if outputs[2] != outputs[1]:
            return None
    behind = layers[-1].in_features if kind.output else heads * head_dim
    whole = key_value_heads > 0 and heads > 0 and heads % key_value_heads == 0
    if not whole or behind != heads * head_dim or (kind.by_head and heads != key_value_heads):
        return None
    return heads, key_value_heads, head_dim


def _plain(module: nn.Module, kind: Kind, head_dim: int) -> bool:
    """Whether whatever else it has is one and the same for all heads, as norms of a head are."""
    known = {*kind.projections, kind.output}
    return all(
        name.split(".")[0] in known or parameter.shape[-1:] == (head_dim,)
        for name, parameter in module.named_parameters()
    )


def _integer(module: nn.Module, attribute: str) -> int | None:
    value = getattr(module, attribute, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None

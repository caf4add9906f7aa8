"""Small networks of the shapes that real ones have, each with inputs as a loader gives them."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attention_models import (
    ByHeadAttention,
    Conv1dNet,
    Encoder,
    GroupedAttention,
    GroupNormNet,
    NormedMLP,
    ViT,
)
from torch import Tensor, nn

SAMPLES, CLASSES = 320, 5


def _images() -> Tensor:
    return torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _rows() -> Tensor:
    return torch.randn(SAMPLES, 12, generator=torch.Generator().manual_seed(0))


def _tokens() -> Tensor:
    return torch.randint(20, (SAMPLES, 6), generator=torch.Generator().manual_seed(0))


def _split(batch: Any) -> list[Any]:
    """Batches of 80 samples."""
    if isinstance(batch, Tensor):
        return list(batch.split(80))
    if isinstance(batch, dict):
        return [dict(zip(batch, part, strict=True)) for part in _split(tuple(batch.values()))]
    return list(zip(*(_split(part) for part in batch), strict=True))


def _conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    options.setdefault("padding", kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride)
        self.second = _conv(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8)
        self.blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class ResNeXt(nn.Module):
    """Bottlenecks around a convolution of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 12)
        self.narrow, self.grouped, self.wide = (
            _conv(12, 16, 1), _conv(16, 16, groups=4, stride=2), _conv(16, 12, 1),
        )  # fmt: skip
        self.shortcut = _conv(12, 12, 1, stride=2)
        self.last, self.head = _conv(12, 12, groups=3), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.wide(F.relu(self.grouped(F.relu(self.narrow(x)))))
        x = F.relu(y + self.shortcut(x))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate for each channel from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, gate: bool = False) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.expand = _conv(inputs, hidden, 1)
        self.depthwise = _conv(hidden, hidden, stride=stride, groups=hidden)
        self.gate = SqueezeExcite(hidden) if gate else nn.Identity()
        self.project = _conv(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + self.project(y) if self.residual else self.project(y)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8), InvertedResidual(8, 12, 2, gate=True), InvertedResidual(12, 12)
        )
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu6(self.stem(x))).mean((2, 3)))


class VGG(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *_conv(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            *_conv(8, 16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 24), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(24, 24), nn.ReLU(inplace=True), nn.Linear(24, CLASSES),
        )  # fmt: skip


class SharedModule(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.loop(self.loop(x).relu()).relu())


class InputSkip(nn.Module):
    """Reads its input once more in the middle, as NeRF does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24 + 12, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([x, self.first(x).relu()], -1)
        return self.head(self.second(hidden).relu())


class LoopAfterConcatenation(nn.Module):
    """A layer that runs twice, on two others' outputs side by side, of which one reads all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Linear(12, 12), nn.Linear(12, 8)
        self.loop, self.head = nn.Linear(20, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([x, self.side(x)], -1)
        return self.head(self.loop(self.loop(x).relu()).relu())


class InPlace(nn.Module):
    """Activations in place behind layers over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, CLASSES)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head((x + self.mlp(x)).mean(1))


class TwoInputs(nn.Module):
    """Takes keyword inputs; if asked to, gives a tuple of its outputs and a penalty."""

    def __init__(self, as_tuple: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 16), nn.Linear(12, 16)
        self.head, self.as_tuple = nn.Linear(32, CLASSES), as_tuple

    def forward(self, left: Tensor, right: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = torch.cat([self.left(left).relu(), self.right(right).relu()], -1)
        penalty = hidden.square().mean()
        return (self.head(hidden), penalty) if self.as_tuple else self.head(hidden)


class Attention(nn.Module):
    """Self-attention of separate query, key and value projections, of a kind of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """Down(silu(gate) * up), as in Llama."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        plain = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.mlp = GatedMLP(width, 48) if gated else plain

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A pre-norm encoder of tokens, pooled to classes."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.Sequential(Block(16, gated), Block(16, gated))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens))).mean(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, CLASSES)
    )


def gated_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), GatedMLP(16, 32), nn.Linear(16, CLASSES))


def frozen() -> nn.Module:
    return mlp().requires_grad_(False)


def partly_frozen() -> nn.Module:
    model = VGG()
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Module:
    """Two layers with one weight."""
    model = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip
    model[4].weight = model[2].weight
    return model


# Name -> what makes a fresh instance, what makes its inputs.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (mlp, _rows),
    "vgg": (VGG, _images),
    "resnet": (ResNet, _images),
    "resnext": (ResNeXt, _images),
    "mobilenet": (MobileNet, _images),
    "gated mlp": (gated_mlp, _rows),
    "transformer": (Transformer, _tokens),
    "gated transformer": (lambda: Transformer(gated=True), _tokens),
    "shared module": (SharedModule, _rows),
    "input skip": (InputSkip, _rows),
    "input skip of tokens": (InputSkip, lambda: _rows()[:, None].repeat(1, 3, 1)),
    "loop after concatenation": (LoopAfterConcatenation, _rows),
    "in place": (InPlace, _tokens),
    "frozen": (frozen, _rows),
    "partly frozen": (partly_frozen, _images),
    "bf16": (lambda: mlp().bfloat16(), lambda: _rows().bfloat16()),
    "bf16 resnet": (lambda: ResNet().bfloat16(), lambda: _images().bfloat16()),
    "tuple inputs": (mlp, lambda: (_rows(), torch.arange(SAMPLES) % CLASSES)),
    "keyword inputs": (TwoInputs, lambda: {"left": _rows(), "right": _rows().flip(0)}),
    "tuple outputs": (
        lambda: TwoInputs(as_tuple=True),
        lambda: {"left": _rows(), "right": _rows().flip(0)},
    ),
    "tied": (tied, _rows),
    "timm vit": (ViT, _images),
    "heads together": (lambda: ViT(ByHeadAttention), _images),
    "key/value groups": (lambda: ViT(GroupedAttention, key_value_heads=2), _images),
    "one key/value head": (lambda: ViT(GroupedAttention, key_value_heads=1), _images),
    "torch encoder": (Encoder, _tokens),
    "torch pre-norm encoder": (lambda: Encoder(norm_first=True), _tokens),
    "group norm": (GroupNormNet, _images),
    "conv1d": (Conv1dNet, lambda: _images().flatten(2)[..., :24]),
    "rms norm": (NormedMLP, _rows),
}


def architecture(name: str) -> tuple[nn.Module, list[Any]]:
    """A network with weights as after some training, and its calibration batches."""
    make, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = make()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model, _split(inputs())

"""Sparse and masked linear layers against cuBLAS; every answer is asserted before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from device import Figure, seconds_of, seconds_of_each
from torch import Tensor

from simmim_ext.nn import MaskedLinear, SparseLinear, masked_linear
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

SIZE, WEIGHTS = 4096, 24  # a square weight's, and how many take turns
LINEAR_BATCHES = (1, 8, 16, 64, 256)


@torch.inference_mode()
def small_linears(measures: dict[str, float]) -> Iterator[Figure]:
    """The layer that keeps the compressed form only, and decompresses it in each call."""
    del measures
    mask = torch.rand(SIZE, SIZE, device="cuda") < 0.2
    linear = torch.nn.Linear(SIZE, SIZE, bias=False, device="cuda", dtype=torch.bfloat16)
    layers = [SparseLinear.from_linear(linear, mask, memory="small") for _ in range(WEIGHTS)]
    dense = [layer.to_dense().weight for layer in layers]
    for batch in (1, 256):
        x = torch.randn(batch, SIZE, device="cuda", dtype=torch.bfloat16)
        torch.testing.assert_close(layers[0](x), F.linear(x, dense[0]), rtol=0.02, atol=0.1)
        taken = seconds_of_each([lambda x=x, layer=layer: layer(x) for layer in layers])
        rival = seconds_of_each([lambda x=x, w=w: F.linear(x, w) for w in dense])
        rate = layers[0].nbytes / taken / 1e9
        yield (
            f"SparseLinear, memory='small', bfloat16 {SIZE} x {SIZE}, 80% zeros, batch {batch}",
            {
                "ms": taken * 1e3,
                "rate": f"{rate:.0f} GB/s",
                "times_as_fast": {"cuBLAS": rival / taken},
            },
        )


@torch.inference_mode()
def sparse_linears(
    measures: dict[str, float], dtype: torch.dtype, density: float
) -> Iterator[Figure]:
    """Every choice of the layer against cuBLAS, and a packed product even where it is not one."""
    kind, worst = f"{str(dtype)[6:]}, {1 - density:.0%} zeros", (float("inf"), "")
    dense, packings, layers = [], {"row": [], "tile": [], "list": []}, []
    # Float32's are twice as large; of the sparsest more fit the L2 cache.
    weights = (WEIGHTS if dtype == torch.bfloat16 else WEIGHTS // 2) * max(1, round(0.1 / density))
    for _ in range(weights):
        mask = torch.rand(SIZE, SIZE, device="cuda") < density
        weight = torch.randn(SIZE, SIZE, device="cuda", dtype=dtype).where(mask, 0)
        linear = torch.nn.Linear(SIZE, SIZE, bias=False, device="cuda", dtype=dtype)
        linear.weight = torch.nn.Parameter(weight)
        dense.append(weight)
        for layout, packed in packings.items():
            if layout != "list" or dtype != torch.float32:
                packed.append(pack_sparse_weight(weight, mask, layout))
        layers.append(SparseLinear.from_linear(linear, mask))
    for batch in LINEAR_BATCHES:
        x = torch.randn(batch, SIZE, device="cuda", dtype=dtype)
        expected = x.double() @ dense[0].double().t()
        kernel = layers[0].choice.kernel(batch)
        packed = packings.get(kernel, packings["tile"])
        tolerance = 0.5 if dtype == torch.bfloat16 else 1e-3
        for y in (sparse_linear(x, packed[0], None, SIZE), layers[0](x)):
            torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=tolerance)
        taken = seconds_of_each([lambda x=x, p=p: sparse_linear(x, p, None, SIZE)
                                 for p in packed])  # fmt: skip
        rival = seconds_of_each([lambda x=x, w=w: F.linear(x, w) for w in dense])
        rate = packed[0].nbytes / taken / 1e9
        flops = 2 * batch * SIZE**2 / taken / 1e12
        yield (
            f"sparse linear {SIZE} x {SIZE}, {kind}, batch {batch}",
            {
                "ms": taken * 1e3,
                "rate": f"{rate:.0f} GB/s",
                "of_copy": rate / measures["copy_gb_per_s"],
                "of_tensor_peak": flops / measures["bf16_tflop_per_s"],
                "times_as_fast": {"cuBLAS": rival / taken},
            },
        )
        chosen = seconds_of_each([lambda x=x, layer=layer: layer(x) for layer in layers])
        worst = min(worst, (rival / chosen, f"batch {batch}: {kernel}"))
    yield (
        f"SparseLinear's choices, {kind}, the worst ({worst[1]})",
        {"ms": None, "rate": "", "times_as_fast": {"cuBLAS": worst[0]}},
    )


def masked_linears(measures: dict[str, float]) -> Iterator[Figure]:
    """The layer that trains: its product, and a step with both gradients."""
    dtype = torch.bfloat16
    layers = [torch.nn.Linear(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(WEIGHTS)]
    masks = [torch.rand(SIZE, SIZE, device="cuda") < 0.2 for _ in layers]
    both = list(zip(layers, masks, strict=True))
    for batch in (1, 16, 1024):
        x = torch.randn(batch, SIZE, device="cuda", dtype=dtype)
        layer, mask = both[0]
        expected = F.linear(x.double(), layer.weight.double() * mask, layer.bias.double())
        y = masked_linear(x, layer.weight, mask, layer.bias)
        torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.1)
        with torch.inference_mode():
            taken = seconds_of_each([lambda x=x, n=n, m=m: masked_linear(x, n.weight, m, n.bias)
                                     for n, m in both])  # fmt: skip
            rival = seconds_of_each([lambda x=x, n=n, m=m: F.linear(x, n.weight * m, n.bias)
                                     for n, m in both])  # fmt: skip
        rate = (layer.weight.nbytes + mask.nbytes) / taken / 1e9
        yield (
            f"masked linear bfloat16 {SIZE} x {SIZE}, batch {batch}",
            {
                "ms": taken * 1e3,
                "rate": f"{rate:.0f} GB/s",
                "of_copy": rate / measures["copy_gb_per_s"],
                "times_as_fast": {"torch W*M": rival / taken},
            },
        )
    x = torch.randn(1024, SIZE, device="cuda", dtype=dtype, requires_grad=True)
    layer, mask = MaskedLinear.from_linear(layers[0], masks[0]), masks[0]
    wanted, grad = (x, layer.weight, layer.bias), torch.randn(1024, SIZE, device="cuda").to(dtype)

    def step(forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), wanted, grad)

    steps = [
        lambda: step(lambda: layer(x)),
        lambda: step(lambda: F.linear(x, layer.weight * mask, layer.bias)),
    ]
    for ours, theirs in zip(steps[0](), steps[1](), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=1.0)
    taken, rival = map(seconds_of, steps)
    flops = 6 * 1024 * SIZE**2 / taken / 1e12
    yield (
        f"masked linear bfloat16 {SIZE} x {SIZE}, a training step, batch 1024",
        {
            "ms": taken * 1e3,
            "rate": f"{flops:.0f} TFLOP/s",
            "of_tensor_peak": flops / measures["bf16_tflop_per_s"],
            "times_as_fast": {"torch W*M": rival / taken},
        },
    )

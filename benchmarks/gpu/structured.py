"""Layers on torch's own kernels for structured weights, against cuBLAS."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from device import Figure, seconds_of, seconds_of_each
from torch import Tensor

from simmim_ext.nn import SparseLinear

SIZE = 4096  # a square weight's


def masks_of_torchs_kernels() -> Iterator[tuple[str, Tensor]]:
    """Masks that the layer takes torch's own kernels for, by their names."""
    pairs = torch.rand(SIZE, SIZE // 4, 4, device="cuda").argsort(-1) < 2
    yield "2:4", pairs.flatten(1)
    for side, density in ((16, 0.05), (32, 0.1), (64, 0.2)):
        blocks = torch.rand(SIZE // side, SIZE // side, device="cuda") < density
        mask = blocks.repeat_interleave(side, 0).repeat_interleave(side, 1)
        yield f"blocks of {side} x {side}, {1 - density:.0%} zeros", mask


@torch.inference_mode()
def structured_linears(measures: dict[str, float]) -> Iterator[Figure]:
    """What 2:4 and blocks gain, also in batches for which they are not chosen."""
    for name, mask in masks_of_torchs_kernels():
        layers = []
        for _ in range(4):
            linear = torch.nn.Linear(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
            layers.append(SparseLinear.from_linear(linear, mask))
        dense = [layer.to_dense() for layer in layers]
        products = [layer._made.kernels[-1].product for layer in layers]
        title = f"SparseLinear bfloat16 {SIZE} x {SIZE}, {name}"
        if products[0] is None:  # no cuSPARSELt or no Triton
            yield title, {"ms": None, "rate": "not offered here", "times_as_fast": {}}
            continue
        for batch in (512, 2048, 4096, 16384):
            x = torch.randn(batch, SIZE, device="cuda", dtype=torch.bfloat16)
            expected = x.double() @ dense[0].weight.double().t() + dense[0].bias.double()
            for y in (layers[0](x), products[0](x, layers[0].bias)):
                torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.1)
            taken = seconds_of_each([lambda x=x, p=p, n=n: p(x, n.bias)
                                     for p, n in zip(products, layers, strict=True)])  # fmt: skip
            rival = seconds_of_each([lambda x=x, n=n: n(x) for n in dense])
            called = seconds_of(lambda x=x, n=layers, p=products: [
                product(x, layer.bias) for product, layer in zip(p, n, strict=True)])  # fmt: skip
            called_rival = seconds_of(lambda x=x, n=dense: [layer(x) for layer in n])
            flops = 2 * batch * SIZE**2 / taken / 1e12
            yield (
                f"{title}, batch {batch} (chosen: {layers[0].choice.kernel(batch)})",
                {
                    "ms": taken * 1e3,
                    "rate": f"{flops:.0f} TFLOP/s, zeros included",
                    "times_as_fast": {
                        "cuBLAS": rival / taken,
                        "cuBLAS, without a graph": called_rival / called,
                    },
                },
            )

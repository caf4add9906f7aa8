"""The operators on a GPU, at the sizes of their bars; every answer is asserted before it is timed.

    python benchmarks/gpu/workloads.py FIGURES.json SECONDS

writes what it has after each workload, so that one which takes too long loses the later ones only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import baselines  # noqa: E402
from device import Figure, measured, seconds_of, seconds_of_each  # noqa: E402
from structured import structured_linears  # noqa: E402

import simmim_ext as si  # noqa: E402
from simmim_ext.nn import MaskedLinear, SparseLinear, masked_linear  # noqa: E402
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear  # noqa: E402

LOW, HIGH = -4.0, 4.0


def activations(samples: int, features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(samples + features)
    x = torch.randn(samples, features, device="cuda", generator=generator)
    x[:, 1::2] = (x[:, 1::2] + x[:, : features // 2 * 2 : 2]) / 2**0.5
    return x.clamp_(LOW, HIGH).to(dtype)


def entropies(measures: dict[str, float]) -> Iterator[Figure]:
    for dtype in (torch.bfloat16, torch.float32):
        x = activations(1_000_000, 1024, dtype)
        for bins in (16, 64):
            few = x[:65536, :64]
            expected = baselines.entropy(few.float(), bins, LOW, HIGH)
            got = si.entropy(few, bins=bins, range=(LOW, HIGH))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
            taken = seconds_of(lambda x=x, bins=bins: si.entropy(x, bins=bins, range=(LOW, HIGH)))
            rival = seconds_of(lambda few=few, bins=bins: baselines.entropy(few, bins, LOW, HIGH))
            rate = x.nbytes / taken / 1e9
            yield (
                f"entropy 1e6 x 1024, {str(dtype)[6:]}, {bins} bins",
                {
                    "ms": taken * 1e3,
                    "rate": f"{rate:.0f} GB/s",
                    "of_copy": rate / measures["copy_gb_per_s"],
                    "times_as_fast": {"torch scatter_add": rival * x.numel() / few.numel() / taken},
                },
            )


def pairs(measures: dict[str, float]) -> Iterator[Figure]:
    x = activations(16384, 4096)
    for bins in (16, 8, 32, 64):
        binned = si.discretize(x, bins=bins, range=(LOW, HIGH))
        few = 512 if bins <= 32 else 256  # features of the rivals, whose one-hot codes are large
        code = baselines.codes(x[:, :few], bins, LOW, HIGH)
        little = si.Discretized(binned.codes[:few].contiguous(), bins)
        expected = baselines.pairwise_by_scatter(code[:, :4], code, bins)
        torch.testing.assert_close(si.mutual_information(little)[:4], expected, rtol=0, atol=2e-5)
        taken = seconds_of(lambda b=binned: si.mutual_information(b), rounds=5)
        per_pair = taken / 4096**2
        rivals = {
            f"torch {name} one-hot": seconds_of(
                lambda c=code, n=bins, d=dtype: baselines.pairwise_by_one_hot(c, n, d), rounds=3
            )
            / few**2
            / per_pair
            for name, dtype in (("int8", torch.int8), ("bf16", torch.bfloat16))
        }
        rivals["torch scatter_add"] = (
            seconds_of(lambda c=code, n=bins: baselines.pairwise_by_scatter(c[:, :4], c, n), 3)
            / (4 * few)
            / per_pair
        )
        yield (
            f"pairwise MI, 4096 x 16384, {bins} bins",
            {
                "ms": taken * 1e3,
                "rate": f"{1 / per_pair / 1e6:.0f}e6 pairs/s",
                "times_as_fast": rivals,
            },
        )


def labels(measures: dict[str, float]) -> Iterator[Figure]:
    x = activations(65536, 4096)
    binned = si.discretize(x, bins=16, range=(LOW, HIGH))
    target = torch.randint(10, (65536,), device="cuda")
    code = baselines.codes(x[:, :512], 16, LOW, HIGH)
    expected = baselines.label_by_scatter(code, target, 16, 10)
    torch.testing.assert_close(
        si.mutual_information(binned, target)[:512], expected, rtol=0, atol=1e-5
    )
    taken = seconds_of(lambda: si.mutual_information(binned, target))
    rival = seconds_of(lambda: baselines.label_by_scatter(code, target, 16, 10)) * 8
    rate = binned.codes.nbytes / taken / 1e9
    yield (
        "label MI, 4096 x 65536, 10 classes, 16 bins",
        {
            "ms": taken * 1e3,
            "rate": f"{4096 / taken / 1e6:.2f}e6 features/s",
            "of_copy": rate / measures["copy_gb_per_s"],
            "times_as_fast": {"torch scatter_add": rival / taken},
        },
    )
    few, classes = 256, 1000
    p = torch.randn(65536, classes, device="cuda").mul_(3).softmax(1)
    little = si.Discretized(binned.codes[:few].contiguous(), 16)
    code = code[:, :few]
    expected = baselines.soft_label_by_one_hot(code[:, :8], p, 16)
    got = si.mutual_information(little, probabilities=p)[:8]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    taken = seconds_of(lambda: si.mutual_information(little, probabilities=p), rounds=3)
    chunks = [code[:, i : i + 32] for i in range(0, few, 32)]
    rival = seconds_of(
        lambda: [baselines.soft_label_by_one_hot(c, p, 16) for c in chunks], rounds=3
    )
    yield (
        f"soft-label MI, {few} x 65536, {classes} classes",
        {
            "ms": taken * 1e3,
            "rate": f"{few / taken:.0f} features/s",
            "times_as_fast": {"torch one-hot matmul": rival / taken},
        },
    )


def quantiles(measures: dict[str, float]) -> Iterator[Figure]:
    x = activations(1_000_000, 64)
    codes = si.discretize(x, bins=16, binning="quantile").codes
    assert (torch.stack([c.bincount(minlength=16) for c in codes.long()]) - 62_500).abs().max() <= 1
    taken = seconds_of(lambda: si.discretize(x, bins=16, binning="quantile"))
    rival = seconds_of(lambda: baselines.quantile_codes(x, 16), rounds=3)
    yield (
        "quantile codes, 1e6 x 64, 16 bins",
        {
            "ms": taken * 1e3,
            "rate": f"{x.numel() / taken / 1e9:.2f}e9 values/s",
            "times_as_fast": {"torch.quantile + bucketize": rival / taken},
        },
    )


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
def sparse_linears(measures: dict[str, float]) -> Iterator[Figure]:
    """Every choice of the layer against cuBLAS, and a packed product even where it is not one."""
    worst = (float("inf"), "")
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype)[6:]
        for density in (0.2, 0.1, 0.5, 0.02) if dtype == torch.bfloat16 else (0.2,):
            dense, packings, layers = [], {"row": [], "tile": []}, []
            for _ in range(WEIGHTS if dtype == torch.bfloat16 else WEIGHTS // 2):
                mask = torch.rand(SIZE, SIZE, device="cuda") < density
                weight = torch.randn(SIZE, SIZE, device="cuda", dtype=dtype).where(mask, 0)
                linear = torch.nn.Linear(SIZE, SIZE, bias=False, device="cuda", dtype=dtype)
                linear.weight = torch.nn.Parameter(weight)
                dense.append(weight)
                for layout, packed in packings.items():
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
                name = f"sparse linear {kind} {SIZE} x {SIZE}, {1 - density:.0%} zeros, {batch=}"
                rate = packed[0].nbytes / taken / 1e9
                flops = 2 * batch * SIZE**2 / taken / 1e12
                yield (
                    name.replace("batch=", "batch "),
                    {
                        "ms": taken * 1e3,
                        "rate": f"{rate:.0f} GB/s",
                        "of_copy": rate / measures["copy_gb_per_s"],
                        "of_tensor_peak": flops / measures["bf16_tflop_per_s"],
                        "times_as_fast": {"cuBLAS": rival / taken},
                    },
                )
                chosen = seconds_of_each([lambda x=x, layer=layer: layer(x) for layer in layers])
                where = f"{kind}, {1 - density:.0%} zeros, batch {batch}"
                worst = min(worst, (rival / chosen, f"{where}: {kernel}"))
    yield (
        f"SparseLinear's choices, the worst ({worst[1]})",
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


def main(path: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    results: dict[str, Any] = {"measured": measured(), "figures": {}}
    for workload in (
        entropies,
        pairs,
        sparse_linears,
        masked_linears,
        labels,
        quantiles,
        small_linears,
        structured_linears,
    ):
        for name, figure in workload(results["measured"]):
            results["figures"][name] = figure
            Path(path).write_text(json.dumps(results, indent=1) + "\n")
            print(name, figure, flush=True)
            if time.monotonic() > end:
                return
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

"""Entropies, codes and information against torch's own ways; answers are asserted before timing."""

from __future__ import annotations

from collections.abc import Iterator

import baselines
import torch
from device import Figure, seconds_of
from torch import Tensor

import simmim_ext as si

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


def pairs(measures: dict[str, float], bins: int) -> Iterator[Figure]:
    del measures
    x = activations(16384, 4096)
    binned = si.discretize(x, bins=bins, range=(LOW, HIGH))
    few = 512 if bins <= 32 else 256  # features of the rivals, whose one-hot codes are large
    code = baselines.codes(x[:, :few], bins, LOW, HIGH)
    little = si.Discretized(binned.codes[:few].contiguous(), bins)
    expected = baselines.pairwise_by_scatter(code[:, :4], code, bins)
    torch.testing.assert_close(si.mutual_information(little)[:4], expected, rtol=0, atol=2e-5)
    taken = seconds_of(lambda: si.mutual_information(binned), rounds=5)
    per_pair = taken / 4096**2
    ways = {
        "int8 one-hot": (few**2, lambda: baselines.pairwise_by_one_hot(code, bins, torch.int8)),
        "bf16 one-hot": (few**2, lambda: baselines.pairwise_by_one_hot(code, bins, torch.bfloat16)),
        "scatter_add": (4 * few, lambda: baselines.pairwise_by_scatter(code[:, :4], code, bins)),
    }
    rivals = {}
    for name, (count, way) in ways.items():
        try:
            rivals[f"torch {name}"] = seconds_of(way, rounds=3) / count / per_pair
        except RuntimeError as error:  # cuBLAS lacks some products; ours is a figure all the same
            print(f"torch {name}: {error}", flush=True)
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


def soft_labels(measures: dict[str, float]) -> Iterator[Figure]:
    del measures
    features, few, classes = 4096, 256, 1000
    x = activations(65536, features)
    binned = si.discretize(x, bins=16, range=(LOW, HIGH))
    p = torch.randn(65536, classes, device="cuda").mul_(3).softmax(1)
    code = baselines.codes(x[:, :few], 16, LOW, HIGH)
    expected = baselines.soft_label_by_one_hot(code[:, :8], p, 16)
    got = si.mutual_information(binned, probabilities=p)[:8]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    taken = seconds_of(lambda: si.mutual_information(binned, probabilities=p), rounds=3)
    chunks = [code[:, i : i + 32] for i in range(0, few, 32)]
    rival = seconds_of(
        lambda: [baselines.soft_label_by_one_hot(c, p, 16) for c in chunks], rounds=3
    )
    yield (
        f"soft-label MI, {features} x 65536, {classes} classes",
        {
            "ms": taken * 1e3,
            "rate": f"{features / taken:.0f} features/s",
            "times_as_fast": {
                f"torch one-hot matmul ({few} features, scaled)": rival * features / few / taken
            },
        },
    )


def conditionals(measures: dict[str, float]) -> Iterator[Figure]:
    del measures
    features, few, samples = 1024, 128, 16384
    x, target = activations(samples, features), torch.randint(10, (samples,), device="cuda")
    binned = si.discretize(x, bins=8, range=(LOW, HIGH))
    code = baselines.codes(x[:, :few], 8, LOW, HIGH)
    expected = baselines.conditional_by_scatter(code, target, 8, 10)
    got = si.conditional_mutual_information(binned, binned, target)[:few, :few]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    taken = seconds_of(lambda: si.conditional_mutual_information(binned, binned, target), rounds=3)
    rival = seconds_of(lambda: baselines.conditional_by_scatter(code, target, 8, 10), rounds=3)
    yield (
        f"conditional MI, {features} x {samples}, 10 classes, 8 bins",
        {
            "ms": taken * 1e3,
            "rate": f"{features**2 / taken / 1e6:.1f}e6 pairs/s",
            "times_as_fast": {
                f"torch scatter_add ({few} features, scaled)": rival * (features / few) ** 2 / taken
            },
        },
    )


def predictions(measures: dict[str, float]) -> Iterator[Figure]:
    for samples, classes in ((1_000_000, 10), (65536, 1000), (4096, 50257)):
        logits = torch.randn(samples, classes, device="cuda").mul_(3)
        expected = baselines.predictive_information(logits.double()).float()
        got = si.predictive_information(logits)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        taken = seconds_of(lambda x=logits: si.predictive_information(x))
        rival = seconds_of(lambda x=logits: baselines.predictive_information(x))
        rate = logits.nbytes / taken / 1e9
        yield (
            f"predictive information, {samples} x {classes}",
            {
                "ms": taken * 1e3,
                "rate": f"{rate:.0f} GB/s",
                "of_copy": rate / measures["copy_gb_per_s"],
                "times_as_fast": {"torch log_softmax": rival / taken},
            },
        )


def quantiles(measures: dict[str, float]) -> Iterator[Figure]:
    x = activations(1_000_000, 64)
    codes = si.discretize(x, bins=16, binning="quantile").codes
    assert (torch.stack([c.bincount(minlength=16) for c in codes.long()]) - 62_500).abs().max() <= 4
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

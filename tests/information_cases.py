"""Cases of the operators behind the information functions; part of the one table in cases.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import information_reference as reference
import torch
from case import Case
from torch import Tensor

from simmim_ext.ops.conditional import conditional_mutual_information
from simmim_ext.ops.entropy import entropy
from simmim_ext.ops.joint import joint_histogram, joint_information, pairwise_information
from simmim_ext.ops.label import label_information, soft_label_information
from simmim_ext.ops.predictive import predictive_information

ESTIMATORS = ("plugin", "miller_madow", "grassberger", "chao_shen", "shrink")
QUANTITIES = ("joint_entropy", "conditional_entropy", "mutual_information")
NORMALIZATIONS = (None, "min", "max", "arithmetic", "geometric")


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(features: int, samples: int, bins: int, device: str, missing: float = 0.0) -> Tensor:
    """Codes of features that depend on one another, with ties and a share of missing samples."""
    generator = _random(features * 100 + bins)
    common = torch.randint(0, bins, (samples,), generator=generator)
    own = torch.randint(0, bins, (features, samples), generator=generator)
    copies = torch.rand(features, samples, generator=generator) < 0.5
    codes = torch.where(copies, common, own).clamp(max=max(1, bins - 2)).to(torch.uint8)
    gone = torch.rand(features, samples, generator=generator) < missing
    return codes.masked_fill(gone, 255).to(device)


# counts and codes


def _entropy_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    counts = torch.randint(0, 6, (3, 4, 17), generator=_random(0)).to(device)
    many = torch.randint(0, 2**33, (2, 256), generator=_random(1)).to(device)
    for estimator in ESTIMATORS:
        yield counts, estimator
        yield counts[0, 0], estimator, 2.0
        yield torch.tensor([[0, 7], [1, 1], [5, 0]], device=device), estimator
        if estimator != "chao_shen":
            yield many, estimator


def _joint_histogram_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for samples in (1, 2, 1027):
        yield _codes(3, samples, 8, device), _codes(2, samples, 5, device), 8, 5
    x, y = _codes(2, 500, 255, device, 0.2), _codes(3, 500, 16, device, 0.1)
    yield x, y, 255, 16
    yield x.t().contiguous().t(), _codes(1, 500, 256, device), 255, 256


def _joint_information_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    counts = torch.randint(0, 5, (2, 3, 4, 6), generator=_random(0)).to(device)
    for estimator in ESTIMATORS:
        for quantity in QUANTITIES:
            yield counts, quantity, estimator, None, 2.0
        for normalized in NORMALIZATIONS[1:]:
            yield counts, "mutual_information", estimator, normalized


def _pairwise_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    x, y = _codes(4, 601, 8, device), _codes(3, 601, 5, device)
    gaps, more = _codes(70, 90, 6, device, 0.3), _codes(66, 90, 9, device, 0.1)
    for estimator in ESTIMATORS:
        for quantity in QUANTITIES:
            yield x, y, 8, 5, quantity, estimator
            yield x, None, 8, 0, quantity, estimator, None, 10.0
            yield gaps[:5], more[:4], 6, 9, quantity, estimator
            yield gaps[:5], None, 6, 9, quantity, estimator
        for normalized in NORMALIZATIONS[1:]:
            yield x, y, 8, 5, "mutual_information", estimator, normalized
    yield gaps, more, 6, 9, "mutual_information"
    yield gaps, None, 6, 9, "conditional_entropy"
    yield _codes(2, 2, 2, device), None, 2, 2, "mutual_information"
    yield _codes(2, 999, 256, device), _codes(1, 999, 256, device), 256, 256, "joint_entropy"


def _by_label(codes: Tensor, labels: Tensor, bins: int, *options: Any) -> tuple[Any, ...]:
    """Arguments of label_information for codes [features, samples], which have no edges."""
    return codes.t(), labels, bins, None, None, None, "raise", "raise", *options


def _label_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    labels = torch.randint(0, 10, (601,), generator=_random(3)).to(device)
    many = torch.randint(0, 500, (601,), generator=_random(3)).to(device)
    x, gaps = _codes(4, 601, 8, device), _codes(3, 601, 9, device, 0.3)
    for estimator in ESTIMATORS:
        for quantity in QUANTITIES:
            yield _by_label(x, labels, 8, quantity, estimator)
            yield _by_label(gaps, labels.short(), 9, quantity, estimator, None, 2.0)
            yield _by_label(gaps, many, 9, quantity, estimator)
        for normalized in NORMALIZATIONS[1:]:
            yield _by_label(x[:2], labels, 8, "mutual_information", estimator, normalized)
        yield from _label_values(labels, estimator, device)
    far = torch.tensor([65535, 0, 65535, 7], device=device)
    yield _by_label(_codes(2, 4, 3, device), far, 3, "mutual_information")
    yield _by_label(_codes(20, 601, 8, device), labels, 8, "mutual_information")


def _label_values(labels: Tensor, estimator: str, device: str) -> Iterator[tuple[Any, ...]]:
    """Values on a grid of 1/64, which uniform bins meet without rounding, edges included."""
    x = torch.randint(-64, 65, (601, 5), generator=_random(9)).to(device) / 64
    low, high = x.new_full((5,), -1), x.new_full((5,), 1)
    gone = x.masked_fill(x > 0.9, torch.nan)
    options = ("mutual_information", estimator)
    yield x, labels, 16, low, high, None, "raise", "raise", *options
    yield x.t().contiguous().t(), labels, 256, low, high, None, "raise", "raise", *options
    yield x.bfloat16(), labels, 8, low / 2, high / 2, None, "raise", "clip", *options
    yield x.double(), labels, 8, low / 2, high / 2, None, "raise", "drop", *options
    yield gone, labels, 16, low, high, None, "omit", "raise", *options
    yield gone, labels % 3, 4, None, None, None, "omit", "raise", *options
    yield gone, labels, 3, None, None, low.new_tensor([-1, -0.5, 0, 1]), "omit", "drop", *options


def _soft_label_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        logits = 3 * torch.randn(301, 10, generator=_random(4))
        p = logits.softmax(1).to(device, dtype)
        yield _codes(4, 301, 8, device), p, 8
        yield _codes(3, 301, 9, device, 0.3), p.t().contiguous().t(), 9, None, 2.0
        for normalized in NORMALIZATIONS[1:]:
            yield _codes(2, 301, 8, device), p, 8, normalized
    wide = torch.randn(40, 5000, generator=_random(5)).softmax(1).to(device)
    yield _codes(2, 40, 3, device), wide, 3


def _conditional_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    x, y = _codes(3, 400, 4, device), _codes(2, 400, 5, device)
    gaps, more = _codes(3, 400, 4, device, 0.2), _codes(2, 400, 5, device, 0.1)
    labels = torch.randint(0, 7, (400,), generator=_random(6)).to(device)
    classes = torch.randint(0, 70, (400,), generator=_random(7)).to(device)
    codes = _codes(1, 400, 6, device, 0.1)
    for estimator in ESTIMATORS:
        yield x, y, labels, 4, 5, None, estimator
        yield x, None, classes, 4, 0, None, estimator, 2.0
        yield gaps, more, codes, 4, 5, 6, estimator
        yield gaps, None, codes, 4, 5, 6, estimator
        yield x, classes, labels, 4, 0, None, estimator
        yield gaps, classes.int(), codes, 4, 0, 6, estimator
        yield from _many_given(labels, codes, estimator, device)
    long = torch.arange(17000, device=device) % 3  # several chunks, some of them of two groups
    yield _codes(2, 17000, 4, device), _codes(8, 17000, 5, device, 0.1), long, 4, 5
    yield _codes(9, 17000, 4, device)[:5], _codes(8, 17000, 5, device), long, 4, 5


def _many_given(
    labels: Tensor, codes: Tensor, estimator: str, device: str
) -> Iterator[tuple[Any, ...]]:
    """Features enough for carry-save addition."""
    x, y = _codes(9, 400, 4, device), _codes(8, 400, 5, device)
    gaps, more = _codes(9, 400, 4, device, 0.2), _codes(8, 400, 5, device, 0.1)
    yield x, y, labels, 4, 5, None, estimator
    yield x, None, labels, 4, None, None, estimator
    yield gaps, more, codes, 4, 5, 6, estimator
    yield gaps, None, codes, 4, None, 6, estimator


def _predictive_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for samples, classes in ((2, 1), (2, 3), (333, 10), (40, 1000)):
            logits = 3 * torch.randn(samples, classes, generator=_random(samples))
            yield (logits.to(device, dtype),)
            yield logits.to(device, dtype).t().contiguous().t(), 2.0
    ruled_out = torch.randn(9, 4, generator=_random(8)).to(device)
    ruled_out[::2, 1] = -torch.inf
    yield (ruled_out,)


def _values_with(value: float, samples: int | slice = 3) -> Tensor:
    """[100, 3] in [0, 1] but for a value in feature 2."""
    x = torch.rand(100, 3, generator=_random(10))
    x[samples, 2] = value
    return x


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


INFORMATION_CASES: tuple[Case, ...] = (
    Case(
        name="entropy",
        op=entropy,
        reference=reference.entropy,
        arguments=_entropy_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (torch.ones(2, 3), "plugin"), TypeError,
             "entropy: counts must be int64, got Float"),
            (lambda: (torch.tensor([[3, 4], [0, 1]]), "plugin"), ValueError,
             "entropy: x must have at least 2 valid samples in every feature, got 1 in feature 1"),
            (lambda: (torch.tensor([[3, 4], [-2, 9]]), "plugin"), ValueError,
             "entropy: counts must not be negative, got -2"),
            (lambda: (torch.tensor([[3, 4], [2**62, 2**62]]), "shrink"), ValueError,
             "entropy: counts must add up to less than 2^63, got 9.22337e+18"),
            (lambda: (torch.full((1, 40), 2**62), "plugin"), ValueError,
             "entropy: counts must add up to less than 2^63, got 1.84467e+20"),
            (lambda: (torch.ones(3, dtype=torch.int64), "bayes"), ValueError,
             "entropy: estimator must be one of 'plugin', 'miller_madow', 'grassberger', "
             "'chao_shen', 'shrink', got 'bayes'"),
            (lambda: (torch.ones(3, dtype=torch.int64), "plugin", 1.0), ValueError,
             "entropy: base must be a finite number above 1, got 1"),
        ),
    ),
    Case(
        name="joint_histogram",
        op=joint_histogram,
        reference=reference.joint_histogram,
        arguments=_joint_histogram_arguments,
        bad=(
            (lambda: (_zeros(3), _zeros(1, 3), 4, 4), ValueError,
             "joint_histogram: codes of x must have shape [features, samples], got [3]"),
            (lambda: (_zeros(1, 3), torch.zeros(1, 3), 4, 4), TypeError,
             "joint_histogram: codes of y must be uint8, got Float"),
            (lambda: (_zeros(1, 3), _zeros(1, 4), 4, 4), ValueError,
             "joint_histogram: y must have as many samples as x, got 4 and 3"),
            (lambda: (_zeros(1, 3), _zeros(1, 3) + 9, 4, 4), ValueError,
             "joint_histogram: codes of y must be below bins = 4 (or 255, no sample), got 9 in "
             "feature 0"),
            (lambda: (_zeros(1, 3), _zeros(1, 3), 4, 1), ValueError,
             "joint_histogram: bins of y must be between 2 and 256, got 1"),
        ),
    ),
    Case(
        name="joint_information",
        op=joint_information,
        reference=reference.joint_information,
        arguments=_joint_information_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (torch.ones(1, 1, 2, 2), "joint_entropy"), TypeError,
             "joint_information: counts must be int64, got Float"),
            (lambda: (torch.ones(2, 2, dtype=torch.int64), "joint_entropy"), ValueError,
             "joint_information: counts must have shape [x_features, y_features, x_bins, y_bins], "
             "got [2, 2]"),
            (lambda: (torch.zeros(1, 2, 2, 2, dtype=torch.int64), "joint_entropy"), ValueError,
             "joint_information: every pair must share at least 2 valid samples, got fewer for "
             "feature 0 of x and feature 0 of y"),
            (lambda: (torch.ones(1, 2, 2, 2, dtype=torch.int64) - 2, "joint_entropy"), ValueError,
             "joint_information: counts must not be negative, got -1"),
            (lambda: (torch.full((2, 1, 3, 3), 2**62), "joint_entropy"), ValueError,
             "joint_information: counts must add up to less than 2^63, got 4.15052e+19"),
            (lambda: (torch.ones(1, 2, 2, 2, dtype=torch.int64), "entropy"), ValueError,
             "joint_information: quantity must be one of 'joint_entropy'"),
        ),
    ),
    Case(
        name="pairwise_information",
        op=pairwise_information,
        reference=reference.pairwise_information,
        arguments=_pairwise_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (_zeros(2, 1), None, 4, 4, "joint_entropy"), ValueError,
             "pairwise_information: x must have at least 2 valid samples in every feature, got 1 "
             "in feature 0"),
            (lambda: (_zeros(2, 0), None, 4, 4, "joint_entropy"), ValueError,
             "pairwise_information: x must have at least 2 valid samples in every feature, got 0 "
             "in feature 0"),
            (lambda: (_zeros(2, 9), _zeros(2, 8), 4, 4, "joint_entropy"), ValueError,
             "pairwise_information: y must have as many samples as x, got 8 and 9"),
            (lambda: (torch.tensor([[0, 1, 255, 255]], dtype=torch.uint8),
                      torch.tensor([[0, 1, 1, 1], [255, 255, 1, 1]], dtype=torch.uint8), 4, 4,
                      "joint_entropy"),
             ValueError, "pairwise_information: every pair must share at least 2 valid samples, "
             "got fewer for feature 0 of x and feature 1 of y"),
            (lambda: (_zeros(2, 9), None, 4, 4, "mutual_information", "plugin", "mean"), ValueError,
             "pairwise_information: normalized must be one of 'min', 'max', 'arithmetic', "
             "'geometric', got 'mean'"),
        ),
    ),
    Case(
        name="label_information",
        op=label_information,
        reference=reference.label_information,
        arguments=_label_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: _by_label(_zeros(2, 3), torch.tensor([0, -1, 2]), 4, "joint_entropy"),
             ValueError,
             "label_information: y must hold labels between 0 and 65535, got -1 in sample 1"),
            (lambda: _by_label(_zeros(2, 3), torch.tensor([0, 1, 65536]), 4, "joint_entropy"),
             ValueError,
             "label_information: y must hold labels between 0 and 65535, got 65536 in sample 2"),
            (lambda: _by_label(_zeros(2, 3), torch.zeros(3), 4, "joint_entropy"), TypeError,
             "label_information: y must hold integer class labels, got Float"),
            (lambda: _by_label(_zeros(2, 3), torch.zeros(3, 1).int(), 4, "joint_entropy"),
             ValueError,
             "label_information: y must have shape [samples] where it holds class labels, got "
             "[3, 1]"),
            (lambda: _by_label(_zeros(2, 3), torch.zeros(4).int(), 4, "joint_entropy"), ValueError,
             "label_information: y must have as many samples as x, got 4 and 3"),
            (lambda: _by_label(_zeros(2, 3) + 9, torch.zeros(3).int(), 4, "joint_entropy"),
             ValueError, "label_information: codes of x must be below bins = 4 (or 255, no "
             "sample), got 9 in feature 0"),
            (lambda: (_values_with(torch.nan), torch.arange(2).repeat(50), 4, None, None, None,
                      "raise", "raise", "joint_entropy"),
             ValueError, "label_information: x has NaN in feature 2; pass nan_policy='omit'"),
            (lambda: (_values_with(7.0), torch.arange(2).repeat(50), 4, torch.zeros(3),
                      torch.ones(3), None, "raise", "raise", "joint_entropy"),
             ValueError, "label_information: x must lie in range [0, 1], got 7 in feature 2"),
            (lambda: (_values_with(torch.nan, slice(1, None)), torch.arange(2).repeat(50), 4, None,
                      None, None, "omit", "raise", "joint_entropy"),
             ValueError, "label_information: x must have at least 2 valid samples in every "
             "feature, got 1 in feature 2"),
        ),
    ),
    Case(
        name="soft_label_information",
        op=soft_label_information,
        reference=reference.soft_label_information,
        arguments=_soft_label_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (_zeros(2, 3), torch.ones(3), 4), ValueError,
             "soft_label_information: probabilities must have shape [samples, classes], got [3]"),
            (lambda: (_zeros(2, 3), torch.ones(3, 2), 4), ValueError,
             "soft_label_information: probabilities must be at least 0 and sum to 1 in every "
             "sample, got sum 2 and smallest 1 in sample 0"),
            (lambda: (_zeros(2, 2), torch.tensor([[0.5, 0.5], [1.5, -0.5]]), 4), ValueError,
             "soft_label_information: probabilities must be at least 0 and sum to 1 in every "
             "sample, got sum 1 and smallest -0.5 in sample 1"),
            (lambda: (_zeros(2, 3), torch.ones(4, 1), 4), ValueError,
             "soft_label_information: probabilities must have as many samples as x, got 4 and 3"),
            (lambda: (_zeros(2, 3), torch.ones(3, 1).int(), 4), TypeError,
             "soft_label_information: probabilities must be float16, bfloat16, float32 or float64, "
             "got Int"),
        ),
    ),
    Case(
        name="conditional_mutual_information",
        op=conditional_mutual_information,
        reference=reference.conditional_mutual_information,
        arguments=_conditional_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (_zeros(2, 3), None, torch.tensor([0, 1]), 4, 4), ValueError,
             "conditional_mutual_information: z must have as many samples as x, got 2 and 3"),
            (lambda: (_zeros(2, 3), _zeros(1, 4), torch.tensor([0, 1, 1]), 4, 4), ValueError,
             "conditional_mutual_information: y must have as many samples as x, got 4 and 3"),
            (lambda: (_zeros(2, 3), None, _zeros(2, 3), 4, 4, 4), ValueError,
             "conditional_mutual_information: z must be one feature [samples, 1], got 2 features"),
            (lambda: (_zeros(2, 3), None, torch.tensor([0, -5, 1]), 4, 4), ValueError,
             "conditional_mutual_information: z must hold labels between 0 and 65535, got -5 in "
             "sample 1"),
            (lambda: (_zeros(2, 3), None, _zeros(1, 3) + 255, 4, 4, 4), ValueError,
             "conditional_mutual_information: z must have at least 2 valid samples in every "
             "feature, got 0 in feature 0"),
        ),
    ),
    Case(
        name="predictive_information",
        op=predictive_information,
        reference=reference.predictive_information,
        arguments=_predictive_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (torch.zeros(3),), ValueError,
             "predictive_information: logits must have shape [samples, classes], got [3]"),
            (lambda: (torch.zeros(1, 3),), ValueError,
             "predictive_information: logits must have at least 2 samples and 1 class, got [1, 3]"),
            (lambda: (torch.zeros(3, 3, dtype=torch.int64),), TypeError,
             "predictive_information: logits must be float16, bfloat16, float32 or float64, got "
             "Long"),
            (lambda: (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]),), ValueError,
             "predictive_information: logits must be finite (or -inf for some classes), got NaN or "
             "infinity in sample 1"),
        ),
    ),
)  # fmt: skip

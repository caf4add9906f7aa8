"""The one table of operators: reference, inputs and bad inputs, read by tests and benchmarks.

A case names an operator of ``simmim_ext.ops``, gives a plain-torch reference with the same
signature, makes its arguments for a device (small for the tests, larger for the benchmarks), and
lists calls that must fail with the text they must fail with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import information_reference
import numpy as np
import torch
from case import Case
from discretization_cases import DISCRETIZATION_CASES
from information_cases import INFORMATION_CASES
from linear_cases import LINEAR_CASES
from torch import Tensor

from simmim_ext.ops.entropy import marginal_entropy
from simmim_ext.ops.histogram import histogram


def histogram_reference(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "histogram",
) -> Tensor:
    """numpy.histogram column by column, or bincount for codes."""
    counts = torch.zeros(x.shape[1], bins, dtype=torch.int64)
    for feature, column in enumerate(x.cpu().t()):
        if x.dtype == torch.uint8:
            counts[feature] = column[column < bins].long().bincount(minlength=bins)
            continue
        values = column.double().numpy()
        if nan_policy == "omit":
            values = values[~np.isnan(values)]
        if edges is not None:
            own = (edges if edges.dim() == 1 else edges[feature]).double().cpu().numpy()
        elif low is not None and high is not None:
            own = np.linspace(low[feature].item(), high[feature].item(), bins + 1)
        elif values.min() == values.max():
            own = np.full(bins + 1, values.min())
        else:
            own = np.linspace(values.min(), values.max(), bins + 1)
        if outliers == "clip":
            values = values.clip(own[0], own[-1])
        if own[0] == own[-1]:  # numpy would widen it
            counts[feature, 0] = (values == own[0]).sum()
        else:
            counts[feature] = torch.from_numpy(np.histogram(values, own)[0])
    return counts.to(x.device)


def _grid(samples: int, features: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values on a grid of 1/64, which uniform bins meet without rounding, edges included."""
    generator = torch.Generator().manual_seed(samples * 1000 + features)
    x = torch.randint(-64, 65, (samples, features), generator=generator)
    return (x / 64).to(device, dtype)


def _histogram_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for samples, features in ((2, 1), (77, 5), (1000, 70)):
            x = _grid(samples, features, device, dtype)
            bounds = (
                torch.full((features,), -1.0, device=device),
                torch.ones(features, device=device),
            )
            yield x, 16, *bounds
            yield x.t().contiguous().t(), 64, *bounds
            yield x[::2, ::3], 2, bounds[0][::3], bounds[1][::3]
            yield x, 256, -bounds[1] / 2, bounds[1] / 2, None, "raise", "drop"
            yield x, 8, -bounds[1] / 2, bounds[1] / 2, None, "raise", "clip"
            yield x, 3, None, None, torch.tensor([-1.0, 0.0, 0.5, 1.0], device=device)
    holes = _grid(300, 4, device)
    holes[::7, 2] = torch.nan
    holes[:, 3] = 0.25
    yield holes, 4, None, None, None, "omit"
    codes = torch.arange(64 * 3, device=device).remainder(11).to(torch.uint8).view(64, 3)
    codes[5] = 255
    yield codes, 11


def marginal_entropy_reference(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    shared_low: float | None = None,
    shared_high: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    estimator: str = "plugin",
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    """The entropy of numpy's counts."""
    if shared_low is not None and shared_high is not None:
        low, high = (torch.full((x.shape[1],), end) for end in (shared_low, shared_high))
    counts = histogram_reference(x, bins, low, high, edges, nan_policy, outliers)
    return information_reference.entropy(counts, estimator, base)


def _marginal_entropy_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    yield _grid(64, 8, device), 16, None, None, None, -1.0, 1.0, "raise", "raise", "shrink", 2.0
    for x, bins, *ranges in _histogram_arguments(device):
        if len(x) <= 2:  # too few where some are left out
            continue
        low, high, edges, *policies = (*ranges, *(None,) * (3 - len(ranges)))
        yield x, bins, low, high, edges, None, None, *policies
        if policies == ["raise", "clip"]:
            yield x, bins, None, None, None, -0.5, 0.25, *policies, "miller_madow"


def _with(x: Tensor, row: int, column: int, value: float) -> Tensor:
    x[row, column] = value
    return x


CASES: tuple[Case, ...] = (
    Case(
        name="histogram",
        op=histogram,
        reference=histogram_reference,
        arguments=_histogram_arguments,
        bad=(
            (lambda: (torch.zeros(3), 4), ValueError,
             "histogram: x must have shape [samples, features], got [3]"),
            (lambda: (torch.zeros(3, 2), 1), ValueError,
             "histogram: bins must be between 2 and 256, got 1"),
            (lambda: (torch.zeros(3, 2), 257), ValueError,
             "histogram: bins must be between 2 and 256, got 257"),
            (lambda: (torch.zeros(0, 2), 4), ValueError,
             "histogram: x must have at least 1 sample where range is None, got [0, 2]"),
            (lambda: (torch.zeros(3, 2, dtype=torch.int64), 4), TypeError,
             "histogram: x must be float16, bfloat16, float32 or float64, got Long; "
             "wrap integer codes as Discretized(codes, bins)"),
            (lambda: (torch.zeros(3, 2, dtype=torch.complex64), 4), TypeError,
             "histogram: x must be float16, bfloat16, float32 or float64, got ComplexFloat"),
            (lambda: (_with(torch.rand(9, 3), 4, 2, torch.nan), 4), ValueError,
             "histogram: x has NaN in feature 2; pass nan_policy='omit'"),
            (lambda: (_with(torch.rand(9, 3), 4, 1, torch.inf), 4), ValueError,
             "histogram: x has infinity in feature 1; pass outliers='drop' or 'clip'"),
            (lambda: (_with(torch.rand(9, 2), 4, 1, 3.0), 4, torch.zeros(2), torch.ones(2)),
             ValueError, "histogram: x must lie in range [0, 1], got 3 in feature 1; widen range"),
            (lambda: (torch.rand(9, 2), 4, torch.ones(2), torch.zeros(2)), ValueError,
             "histogram: range must be finite with low <= high in every feature, got (1, 0) in "
             "feature 0"),
            (lambda: (torch.rand(9, 2), 4, torch.zeros(3), torch.ones(3)), ValueError,
             "histogram: range given as tensors must have shape [features] = [2], got [3]"),
            (lambda: (torch.rand(9, 2), 2, None, None, torch.tensor([0.0, 2.0, 1.0])), ValueError,
             "histogram: bins given as edges must ascend"),
            (lambda: (torch.full((9, 2), 7, dtype=torch.uint8), 4), ValueError,
             "histogram: codes must be below bins = 4 (or 255, no sample), got more in feature 0"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, "skip"), ValueError,
             "histogram: nan_policy must be 'raise' or 'omit', got 'skip'"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, "raise", "keep"), ValueError,
             "histogram: outliers must be 'raise', 'drop' or 'clip', got 'keep'"),
        ),
    ),
    Case(
        name="marginal_entropy",
        op=marginal_entropy,
        reference=marginal_entropy_reference,
        arguments=_marginal_entropy_arguments,
        tolerance=1e-5,
        bad=(
            (lambda: (torch.zeros(3), 4), ValueError,
             "marginal_entropy: x must have shape [samples, features], got [3]"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, 0.0), ValueError,
             "marginal_entropy: range must give both low and high, or neither"),
            (lambda: (torch.rand(9, 2), 4, torch.zeros(2), torch.ones(2), None, 0.0, 1.0),
             ValueError, "marginal_entropy: range must be given for each feature or for all, "
             "not both"),
            (lambda: (torch.rand(9, 2), 2, None, None, torch.arange(3.0), 0.0, 1.0), ValueError,
             "marginal_entropy: range must be None where bins are given as edges"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, 1.0, 0.0), ValueError,
             "marginal_entropy: range must be finite with low <= high in every feature, got (1, 0)"
             " in feature 0"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, 0.0, 1e300), ValueError,
             "marginal_entropy: range must be finite with low <= high in every feature, got (0, "
             "inf) in feature 0"),
            (lambda: (_with(torch.rand(9, 2), 4, 1, 3.0), 4, None, None, None, 0.0, 1.0),
             ValueError, "marginal_entropy: x must lie in range [0, 1], got 3 in feature 1"),
            (lambda: (_with(torch.rand(9, 3), 4, 2, torch.nan), 4), ValueError,
             "marginal_entropy: x has NaN in feature 2; pass nan_policy='omit'"),
            (lambda: (torch.rand(1, 2), 4, None, None, None, 0.0, 1.0), ValueError,
             "marginal_entropy: x must have at least 2 valid samples in every feature, got 1 in "
             "feature 0"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, "0"), TypeError,
             "marginal_entropy: shared_low must be a number or None, got str"),
            (lambda: (torch.rand(9, 2), 4, None, None, None, 0.0, 1.0, "raise", "raise", "bayes"),
             ValueError, "marginal_entropy: estimator must be one of 'plugin', 'miller_madow'"),
        ),
    ),
    *LINEAR_CASES,
    *DISCRETIZATION_CASES,
    *INFORMATION_CASES,
)  # fmt: skip

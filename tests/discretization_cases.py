"""Cases of the operators that turn values into codes; part of the one table in cases.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from case import Case
from torch import Tensor

from simmim_ext.ops.discretize import discretize, quantile_edges


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _values(samples: int, features: int, device: str, dtype: torch.dtype) -> Tensor:
    """Values on a grid of 1/64, which uniform bins meet without rounding, edges included."""
    x = torch.randint(-64, 65, (samples, features), generator=_random(samples + features))
    return (x / 64).to(device, dtype)


def discretize_reference(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "",
    argument: str = "",
) -> tuple[Tensor, Tensor]:
    codes, all_edges = [], []
    for feature, column in enumerate(x.double().cpu().numpy().T):
        if edges is not None:
            own = (edges if edges.dim() == 1 else edges[feature]).double().cpu().numpy()
        else:
            finite = column[np.isfinite(column)]
            ends = (finite.min(), finite.max()) if low is None else (low[feature], high[feature])
            own = np.linspace(*map(float, ends), bins + 1)
        values = column.clip(own[0], own[-1]) if outliers == "clip" else column
        code = np.searchsorted(own, values, side="right") - 1
        code[values == own[-1]] = bins - 1 if own[0] < own[-1] else 0
        code[~((values >= own[0]) & (values <= own[-1]))] = 255
        codes.append(code.astype(np.uint8))
        all_edges.append(own)
    return tuple(torch.from_numpy(np.array(part)).to(x.device) for part in (codes, all_edges))


def _discretize_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for samples, features in ((2, 1), (77, 5), (200, 130)):
            x = _values(samples, features, device, dtype)
            low, high = x.new_full((features,), -1), x.new_full((features,), 1)
            yield x, 16, low, high
            yield x.t().contiguous().t(), 256, low, high
            yield x, 4, low / 2, high / 2, None, "raise", "drop"
            yield x, 8, low / 2, high / 2, None, "raise", "clip"
            yield x, 3, None, None, torch.tensor([-1.0, 0.0, 0.5, 1.0])
    holes = _values(90, 3, device, torch.float32)
    holes[::7, 1], holes[3, 0], holes[:, 2] = torch.nan, torch.inf, 0.25
    yield holes, 4, None, None, None, "omit", "drop"


def quantile_edges_reference(
    x: Tensor,
    bins: int,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "",
    argument: str = "",
) -> Tensor:
    columns = x.double().cpu().numpy().T
    steps = np.linspace(0, 1, bins + 1)
    return torch.from_numpy(np.array([np.quantile(c[np.isfinite(c)], steps) for c in columns]))


def _quantile_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for samples, features in ((2, 1), (77, 5), (500, 20)):
            x = torch.randn(samples, features, generator=_random(samples)).to(device, dtype)
            yield x, 16
            yield x.relu().t().contiguous().t(), 5
    x = torch.randn(99, 2, generator=_random(9))
    x[4, 0], x[5, 1] = torch.nan, -torch.inf
    yield x.to(device), 256, "omit", "clip"


DISCRETIZATION_CASES: tuple[Case, ...] = (
    Case(
        name="discretize",
        op=discretize,
        reference=discretize_reference,
        arguments=_discretize_arguments,
        bad=(
            (lambda: (torch.zeros(3), 4), ValueError,
             "discretize: x must have shape [samples, features], got [3]"),
            (lambda: (torch.zeros(3, 2, dtype=torch.uint8), 4), TypeError,
             "discretize: x must be float16, bfloat16, float32 or float64, got Byte"),
            (lambda: (torch.rand(9, 2), 256, None, None, None, "omit"), ValueError,
             "discretize: bins must be at most 255 where nan_policy is 'omit' or outliers is "
             "'drop' (code 255 marks what was left out), got 256"),
            (lambda: (torch.full((9, 2), torch.nan), 4, None, None, None, "raise", "raise", "f",
                      "y"),
             ValueError, "f: y has NaN in feature 0; pass nan_policy='omit'"),
            (lambda: (torch.rand(9, 2) + 1, 4, torch.zeros(2), torch.ones(2)), ValueError,
             "discretize: x must lie in range [0, 1], got 1."),
        ),
    ),
    Case(
        name="quantile_edges",
        op=quantile_edges,
        reference=quantile_edges_reference,
        arguments=_quantile_arguments,
        tolerance=1e-12,
        bad=(
            (lambda: (torch.zeros(3), 4), ValueError,
             "quantile_edges: x must have shape [samples, features], got [3]"),
            (lambda: (torch.zeros(0, 2), 4), ValueError,
             "quantile_edges: x must have at least 1 sample for quantile bins, got [0, 2]"),
            (lambda: (torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), 4), ValueError,
             "quantile_edges: x has NaN in feature 1; pass nan_policy='omit'"),
            (lambda: (torch.tensor([[0.0, torch.inf], [1.0, 2.0]]), 4), ValueError,
             "quantile_edges: x has infinity in feature 1; pass outliers='drop' or 'clip'"),
        ),
    ),
)  # fmt: skip

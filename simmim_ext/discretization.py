"""Continuous features turned into codes: the form that every entropy is estimated from."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real
from typing import cast

import torch
from torch import Tensor

from .ops.discretize import discretize as _discretize
from .ops.discretize import quantile_edges
from .ops.entropy import marginal_entropy
from .ops.histogram import histogram
from .values import check_dense, checked_values, not_a_tensor

DEFAULT_BINS = 16

Range = tuple[float, float] | tuple[Tensor, Tensor]

_NAMES = {
    "binning": ("uniform", "quantile"),
    "nan_policy": ("raise", "omit"),
    "outliers": ("raise", "drop", "clip"),
}
_GOOD_NAMES = tuple(product(*_NAMES.values()))
_NUMBER = (int, float)
_INTEGER = (int, Integral)  # int, which nearly all are, is told faster
_PAIR = (tuple, list)
_OperatorBins = tuple[int, Tensor | None, Tensor | None, Tensor | None, str, str]


@dataclass(frozen=True, eq=False)
class Discretized:
    """Features that are discrete already, usable wherever x or y is.

    Attributes:
        codes: [features, samples] uint8, each below ``bins``; 255 marks a sample that a feature
            does not have (so that ``bins`` is at most 255 then). Checked where they are used.
        bins: 2..256, the alphabet of every feature.
        edges: [features, bins + 1] of the bins that the codes stand for, or None.
    """

    codes: Tensor
    bins: int
    edges: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.codes, Tensor) or self.codes.dtype != torch.uint8:
            got = self.codes.dtype if isinstance(self.codes, Tensor) else type(self.codes).__name__
            raise TypeError(f"Discretized: codes must be a uint8 tensor, got {got}")
        if self.codes.layout != torch.strided:
            raise TypeError(f"Discretized: codes must be a dense tensor, got {self.codes.layout}")
        if self.codes.dim() != 2:
            raise ValueError(
                "Discretized: codes must have shape [features, samples], "
                f"got {list(self.codes.shape)}"
            )
        object.__setattr__(self, "bins", _checked_bins("Discretized", self.bins))
        if not (self.edges is None or isinstance(self.edges, Tensor)):
            got = type(self.edges).__name__
            raise TypeError(f"Discretized: edges must be a tensor or None, got {got}")
        expected = [self.codes.shape[0], self.bins + 1]
        if self.edges is not None and list(self.edges.shape) != expected:
            raise ValueError(
                f"Discretized: edges must have shape [features, bins + 1] = {expected}, "
                f"got {list(self.edges.shape)}"
            )

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.codes.shape[0]

    @property
    def samples(self) -> int:
        """How many samples there are, valid or not."""
        return self.codes.shape[1]


def discretize(
    x: Tensor,
    *,
    bins: int | Tensor,
    range: Range | None = None,
    binning: str = "uniform",
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> Discretized:
    """Bins every feature, once for any number of estimates.

    Args:
        x: [samples, features] float16/bfloat16/float32/float64, contiguous or not.
        bins: 2..256 (at most 255 where samples may be left out), or edges, [bins + 1] or
            [features, bins + 1]. Bins are half-open, the last one closed, as numpy.histogram.
        range: (low, high), two floats or two [features] tensors (one without axes is a float);
            None: each feature's minimum and maximum.
        binning: "uniform", or "quantile" for bins that hold equally many samples; equal values
            always share a bin.
        nan_policy: "raise", or "omit": code 255.
        outliers: what becomes of infinity and of values outside an explicit range: "raise",
            "drop" (code 255) or "clip" (the first or last bin).

    Returns:
        the codes and the edges of their bins; no gradient flows through them.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature at fault.
        TypeError: x is not floating point.
    """
    if not isinstance(x, Tensor):
        raise not_a_tensor("discretize", "x", x)
    return Binning("discretize", bins, range, binning, nan_policy, outliers).discretize(x)


def _checked_bins(caller: str, bins: object) -> int:
    """The number of bins, whoever's integer it is, as Python's."""
    if isinstance(bins, bool) or not isinstance(bins, _INTEGER):
        raise TypeError(
            f"{caller}: bins must be an int, or a tensor of edges, got {type(bins).__name__}"
        )
    count = int(bins)
    if not 2 <= count <= 256:
        raise ValueError(f"{caller}: bins must be between 2 and 256, got {count}")
    return count


def _as_tensor(end: float | Tensor, device: torch.device) -> Tensor:
    """An end of a range in float64; a number reaches a GPU without a copy that waits for it."""
    if isinstance(end, Tensor):
        return end.detach().to(device, torch.float64)
    return torch.full((), end, dtype=torch.float64, device=device)


def _shown(range: object) -> str:
    """What was given for a range; the kinds of its ends, which can be arrays of any length."""
    if isinstance(range, _PAIR):
        return f"({', '.join(type(end).__name__ for end in range)})"
    return f"{range!r}" if isinstance(range, Real | str) else type(range).__name__


def _is_huge(end: float) -> bool:
    """Whether no float is as large."""
    return isinstance(end, int) and abs(end) > sys.float_info.max


@dataclass(slots=True, eq=False)  # frozen would double what it adds to a small call
class Binning:
    """The keywords by which the public function ``caller`` bins its floating-point arguments.

    What is given feature by feature (a range of tensors, edges [features, bins + 1]) holds for x;
    the other arguments take as many bins between their own minimum and maximum.
    """

    caller: str
    bins: int | Tensor | None
    range: Range | None = None
    binning: str = "uniform"
    nan_policy: str = "raise"
    outliers: str = "raise"

    def __post_init__(self) -> None:
        if (self.binning, self.nan_policy, self.outliers) not in _GOOD_NAMES:
            self._raise_bad_name()
        if isinstance(self.bins, Tensor):
            self._check_edges(self.bins)
        elif self.bins is not None:
            self.bins = _checked_bins(self.caller, self.bins)
        if self.range is not None:
            self._check_range(self.range)

    def _raise_bad_name(self) -> None:
        for argument, names in _NAMES.items():
            if getattr(self, argument) not in names:
                raise ValueError(
                    f"{self.caller}: {argument} must be one of {', '.join(map(repr, names))}, "
                    f"got {getattr(self, argument)!r}"
                )

    def _check_edges(self, edges: Tensor) -> None:
        check_dense(self.caller, "bins", edges)
        if edges.dim() not in (1, 2):
            raise ValueError(
                f"{self.caller}: bins given as edges must have shape [bins + 1] or "
                f"[features, bins + 1], got {list(edges.shape)}"
            )
        if edges.is_complex():
            raise TypeError(f"{self.caller}: bins given as edges must be real, got {edges.dtype}")
        if self.binning == "quantile":
            raise ValueError(f"{self.caller}: bins must be an int where binning is 'quantile'")

    def _check_range(self, range: object) -> None:
        if isinstance(self.bins, Tensor) or self.binning == "quantile":
            reason = "bins are edges" if isinstance(self.bins, Tensor) else "binning is 'quantile'"
            raise ValueError(f"{self.caller}: range must be None where {reason}")
        low, high = range if isinstance(range, _PAIR) and len(range) == 2 else (None, None)
        if isinstance(low, _NUMBER) and isinstance(high, _NUMBER):
            if _is_huge(low) or _is_huge(high):
                raise ValueError(f"{self.caller}: range must be within 1.8e308, got an int beyond")
            return
        if isinstance(low, Real) and isinstance(high, Real):  # numpy's, and others'
            self.range = (float(low), float(high))
            return
        if not isinstance(low, Tensor) or not isinstance(high, Tensor):
            raise TypeError(
                f"{self.caller}: range must be (low, high), two floats or two tensors, or None, "
                f"got {_shown(range)}"
            )
        for end in (low, high):
            check_dense(self.caller, "range", end)
        if low.is_complex() or high.is_complex():
            raise TypeError(f"{self.caller}: range must be real, got {low.dtype} and {high.dtype}")
        if low.shape != high.shape:
            raise ValueError(
                f"{self.caller}: range given as tensors must have one shape, "
                f"got {list(low.shape)} and {list(high.shape)}"
            )

    def keep(self) -> None:
        """Takes copies of the tensors that it was given."""
        if isinstance(self.bins, Tensor):
            self.bins = self.bins.detach().clone()
        if self.range is not None:
            ends = (e.detach().clone() if isinstance(e, Tensor) else e for e in self.range)
            self.range = cast(Range, tuple(ends))

    @property
    def count(self) -> int:
        """The number of bins."""
        if self.bins is None:
            return DEFAULT_BINS
        return self.bins.shape[-1] - 1 if isinstance(self.bins, Tensor) else self.bins

    @property
    def by_feature(self) -> bool:
        """Whether each feature of x has edges or a range of its own."""
        if isinstance(self.bins, Tensor):
            return self.bins.dim() == 2
        low = self.range[0] if self.range is not None else None
        return isinstance(low, Tensor) and low.dim() > 0

    def discretize(self, x: Tensor | Discretized, argument: str = "x") -> Discretized:
        """The codes of x, whatever it is; ``argument`` is what error texts call it."""
        if isinstance(x, Discretized):
            self._check_discretized(argument)
            return x
        x = checked_values(self.caller, argument, x)
        codes, edges = _discretize(x, *self._bins_of(x, argument), self.caller, argument)
        return Discretized(codes, self.count, edges)

    def histogram(self, x: Tensor | Discretized) -> Tensor:
        """The counts [features, bins] int64 of x."""
        values, bins = self.operand(x)
        return histogram(values, *bins, self.caller)

    def entropy(self, x: Tensor | Discretized, estimator: str, base: float | None) -> Tensor:
        """The entropies [features] float32 of x."""
        options = (estimator, base, self.caller)
        if isinstance(x, Tensor) and self.range is not None and isinstance(self.range[0], _NUMBER):
            # As they are: to make tensors of them would take longer than a small call.
            low, high = self.range
            return marginal_entropy(
                checked_values(self.caller, "x", x), self.count, None, None, None, low, high,
                self.nan_policy, self.outliers, *options,
            )  # fmt: skip
        values, (count, lows, highs, edges, nan_policy, outliers) = self.operand(x)
        return marginal_entropy(
            values, count, lows, highs, edges, None, None, nan_policy, outliers, *options
        )

    def operand(self, x: Tensor | Discretized) -> tuple[Tensor, _OperatorBins]:
        """What operators that bin take for x: values or codes [samples, features], and the bins."""
        if isinstance(x, Discretized):
            self._check_discretized("x")
            return x.codes.t(), (x.bins, None, None, None, "raise", "raise")
        x = checked_values(self.caller, "x", x)
        return x, self._bins_of(x, "x")

    def _check_discretized(self, argument: str) -> None:
        for name in ("bins", "range"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{self.caller}: {name} must be None where {argument} is a Discretized, which "
                    f"brings its own bins, got {getattr(self, name)!r}"
                )

    def _bins_of(self, x: Tensor, argument: str) -> _OperatorBins:
        """Arguments of the operators: bins, low, high, edges, nan_policy, outliers."""
        low: Tensor | None = None
        high: Tensor | None = None
        edges: Tensor | None = None
        if self.binning == "quantile":
            policies = (self.nan_policy, self.outliers)
            edges = quantile_edges(x, self.count, *policies, self.caller, argument)
        elif isinstance(self.bins, Tensor):
            if argument == "x" or not self.by_feature:
                edges = self.bins.detach().to(x.device)
        elif self.range is not None and (argument == "x" or not self.by_feature):
            low, high = (_as_tensor(end, x.device) for end in self.range)
            if not self.by_feature:
                low, high = low.expand(x.shape[1]), high.expand(x.shape[1])
        return self.count, low, high, edges, self.nan_policy, self.outliers

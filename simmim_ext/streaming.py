"""Histograms that grow batch by batch: exactly the counts that all samples at once would give."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from .discretization import Binning, Discretized, Range
from .modes import why_unusable
from .ops.entropy import entropy as _entropy
from .ops.histogram import histogram
from .ops.joint import joint_histogram, joint_information

Self = TypeVar("Self", bound="_Streaming")


class _Streaming:
    """Counts with a fixed binning, which add up over batches, histograms and processes."""

    counts: Tensor

    def __init__(
        self,
        features: dict[str, int],
        bins: int | Tensor,
        range: Range | None,
        nan_policy: str,
        outliers: str,
        device: torch.device | str | None,
    ) -> None:
        name = type(self).__name__
        for argument, count in features.items():
            if isinstance(count, bool) or not isinstance(count, Integral):
                raise TypeError(f"{name}: {argument} must be an int, got {type(count).__name__}")
            if count < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {count}")
        features = {argument: int(count) for argument, count in features.items()}
        self._binning = Binning(name, bins, range, "uniform", nan_policy, outliers)
        self._binning.keep()  # what the caller does to its tensors later is not for these bins
        if range is None and not isinstance(bins, Tensor):
            raise ValueError(
                f"{name}: range must be given (or bins as edges): batches can't share bins whose "
                "range depends on the samples"
            )
        # Binning no samples finds a range or edges that none could be binned by.
        self._binning.discretize(
            torch.empty(0, next(iter(features.values())), dtype=torch.double, device="cpu")
        )
        reason = why_unusable(device)
        if reason is not None:
            raise ValueError(
                f"{name}: device must be None or a torch device that can be used here, "
                f"got {device!r} ({reason})"
            )
        shape = (*features.values(), *(self.bins for _ in features))
        with torch.inference_mode(False):  # counted on outside of it too
            self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    @property
    def bins(self) -> int:
        """The number of bins of every feature."""
        return self._binning.count

    def merge_(self: Self, other: Self) -> Self:
        """Adds the counts of another histogram with the same bins."""
        name = type(self).__name__
        if type(other) is not type(self):
            raise TypeError(f"{name}: other must be a {name}, got {type(other).__name__}")
        self._check_state(other.state_dict(), "other")
        self.counts += other.counts.to(self.counts.device)
        return self

    def all_reduce_(self: Self, group: Any = None) -> Self:
        """Adds up the counts of all processes of a torch.distributed group, in each of them."""
        torch.distributed.all_reduce(self.counts, group=group)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors alone: "counts", and "edges" [bins + 1 or 2, or one row for each feature]."""
        return {"counts": self.counts.clone(), "edges": self._edges()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces the counts by those of a histogram with the same bins."""
        self._check_state(state, "state")
        with torch.inference_mode(False):
            self.counts = state["counts"].to(self.counts.device).clone()

    def _check_batch(self, x: object, argument: str, features: int) -> None:
        if not isinstance(x, Tensor) or x.is_nested:  # told of by what bins it
            return
        if x.dim() == 2 and x.shape[1] != features:
            raise ValueError(
                f"{type(self).__name__}: {argument} must have shape [samples, {features}], "
                f"got {list(x.shape)}"
            )

    def _check_codes(self, x: Discretized, argument: str, features: int) -> None:
        if (x.features, x.bins) != (features, self.bins):
            raise ValueError(
                f"{type(self).__name__}: {argument} must have {features} features of {self.bins} "
                f"bins, got {x.features} of {x.bins}"
            )

    def _edges(self) -> Tensor:
        """What defines the bins: their edges, or their range."""
        if isinstance(self._binning.bins, Tensor):
            return self._binning.bins.to("cpu", torch.float64, copy=True)
        assert self._binning.range is not None
        ends = [torch.as_tensor(end, dtype=torch.float64).cpu() for end in self._binning.range]
        return torch.stack(ends, dim=-1)

    def _check_state(self, state: dict[str, Tensor], argument: str) -> None:
        name = type(self).__name__
        for key in ("counts", "edges"):
            if not isinstance(state, Mapping) or not isinstance(state.get(key), Tensor):
                raise ValueError(f"{name}: {argument} must be a dict with the tensor {key!r}")
        if state["counts"].shape != self.counts.shape or state["counts"].dtype != torch.int64:
            raise ValueError(
                f"{name}: {argument} must have int64 counts of shape {list(self.counts.shape)}, "
                f"got {state['counts'].dtype} {list(state['counts'].shape)}"
            )
        if not torch.equal(state["edges"].cpu(), self._edges()):
            raise ValueError(f"{name}: {argument} must have the same bins, got other edges")


class Histogram(_Streaming):
    """Marginal histograms of a stream of batches.

    Args:
        features: how many features x has.
        bins: 2..256, or edges, [bins + 1] or [features, bins + 1].
        range: (low, high), two floats or two [features] tensors; None where bins are edges.
        nan_policy: "raise" or "omit".
        outliers: "raise", "drop" or "clip".
        device: where the counts live.

    Attributes:
        counts: [features, bins] int64.
    """

    def __init__(
        self,
        features: int,
        bins: int | Tensor,
        range: Range | None = None,
        *,
        nan_policy: str = "raise",
        outliers: str = "raise",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__({"features": features}, bins, range, nan_policy, outliers, device)

    def update(self, x: Tensor | Discretized) -> None:
        """Counts a batch: x [samples, features] floating point.

        It may be a Discretized with as many bins.
        """
        if isinstance(x, Discretized):
            self._check_codes(x, "x", self.counts.shape[0])
            counts = histogram(x.codes.t(), x.bins, caller="Histogram")
        else:
            self._check_batch(x, "x", self.counts.shape[0])
            counts = self._binning.histogram(x)
        self.counts += counts.to(self.counts.device)

    def entropy(self, *, estimator: str = "plugin", base: float | None = None) -> Tensor:
        """H(X) [features] float32 of what was counted, as :func:`simmim_ext.entropy`."""
        return _entropy(self.counts, estimator, base, "Histogram")


class JointHistogram(_Streaming):
    """Joint histograms of every pair of a feature of x and one of y, of a stream of batches.

    Args:
        x_features: how many features x has.
        y_features: how many features y has.
        bins: 2..256, or edges [bins + 1], of x and y alike.
        range: (low, high), two floats, of x and y alike; None where bins are edges.
        nan_policy: "raise" or "omit".
        outliers: "raise", "drop" or "clip".
        device: where the counts live.

    Attributes:
        counts: [x_features, y_features, bins, bins] int64 of the samples valid in both.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        bins: int | Tensor,
        range: Range | None = None,
        *,
        nan_policy: str = "raise",
        outliers: str = "raise",
        device: torch.device | str | None = None,
    ) -> None:
        features = {"x_features": x_features, "y_features": y_features}
        super().__init__(features, bins, range, nan_policy, outliers, device)
        if self._binning.by_feature:
            raise ValueError(
                "JointHistogram: range must be two floats, or bins edges [bins + 1], for x and y "
                "alike; discretize features that need bins of their own"
            )

    def update(self, x: Tensor | Discretized, y: Tensor | Discretized) -> None:
        """Counts a batch: x [samples, x_features], y [samples, y_features] floating point.

        Either may be a Discretized with as many bins.
        """
        x_codes, y_codes = self._codes(x, "x", 0), self._codes(y, "y", 1)
        counts = joint_histogram(x_codes, y_codes, self.bins, self.bins, "JointHistogram")
        self.counts += counts.to(self.counts.device)

    def entropy(self, *, estimator: str = "plugin", base: float | None = None) -> Tensor:
        """H(X,Y) [x_features, y_features] float32, as :func:`simmim_ext.joint_entropy`."""
        return joint_information(
            self.counts, "joint_entropy", estimator, None, base, "JointHistogram"
        )

    def mutual_information(
        self,
        *,
        estimator: str = "plugin",
        normalized: str | None = None,
        base: float | None = None,
    ) -> Tensor:
        """I(X;Y) [x_features, y_features] float32, as :func:`simmim_ext.mutual_information`."""
        return joint_information(
            self.counts, "mutual_information", estimator, normalized, base, "JointHistogram"
        )

    def _codes(self, x: Tensor | Discretized, argument: str, axis: int) -> Tensor:
        features = self.counts.shape[axis]
        if not isinstance(x, Discretized):
            self._check_batch(x, argument, features)
            return self._binning.discretize(x, argument).codes
        self._check_codes(x, argument, features)
        return x.codes

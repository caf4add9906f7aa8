"""What a compression run can be told, apart from its data and its budget."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

CRITERIA = (
    "simmim",
    "entropy",
    "relevance",
    "redundancy",
    "mrmr",
    "jmi",
    "cmim",
    "magnitude_l1",
    "magnitude_l2",
    "fpgm",
    "taylor",
    "hessian",
    "activation",
    "random",
)
ALLOCATIONS = ("information", "score", "uniform")
SCHEDULES = ("one-shot", "iterative", "cubic")
ESTIMATORS = ("plugin", "miller_madow", "grassberger", "chao_shen", "shrink")


@dataclass(frozen=True)
class CompressConfig:
    """Settings of ``score``, ``prune``, ``distill`` and ``compress``.

    Attributes:
        criterion: how units are picked: "simmim" (conditional information), or a baseline; see
            ``score``.
        allocation: how the budget is divided between layers: "information" weighs the divergence
            that a unit saves, scaled to what was measured with some of each layer's units, against
            what it costs (criterion "simmim"), or pools I(T; Yhat) (all others); "score" pools the
            criterion's own scores, "uniform" gives equal shares.
        reconstruct: refit each next layer by ridge regression after units were removed. With a
            granularity of weights, criterion, allocation and this must stay at their defaults.
        bins: histogram bins of marginal estimates, 2 to 256. Criterion "simmim" takes no
            histograms: these four serve the criteria that do, the information and entropy of
            ``Scores``, and ``diagnose``.
        pair_bins: histogram bins of pairwise estimates, 2 to 256.
        shared_range: one histogram range for a whole layer, which keeps the units' scale.
        estimator: entropy estimator, see ``entropy``; information about predictions is plug-in.
        epochs: passes over the training data in distillation; 0 trains nothing.
        lr: Adam's initial learning rate, which falls to zero along a half cosine.
        temperature: softmax temperature T of distillation; the loss is multiplied by T^2.
        label_weight: weight of the cross-entropy with labels, which all batches must carry then.
        gram_weight: weight of the similarity-preserving Gram loss (Tung & Mori, 2019).
        schedule: "one-shot", or "iterative" (equal ratios) or "cubic" (Zhu & Gupta, 2017),
            which prune and distil ``steps`` times.
        steps: number of pruning steps; 1 for "one-shot".
        calibration_samples: most calibration samples that are used.
        seed: seed of everything random.
        device: where ``compress`` computes; None is the model's device. All others compute where
            the model is, and take no other device.
        amp: distil under bfloat16 autocast.
        freeze_batch_norm: distil with BatchNorm's statistics as they are, which reconstruction
            fitted to; for small batches, or few of them, whose own statistics are others. With a
            whole data set to distil on it is worse.
    """

    criterion: str = "simmim"
    allocation: str = "information"
    reconstruct: bool = True
    bins: int = 16
    pair_bins: int = 8
    shared_range: bool = True
    estimator: str = "plugin"
    epochs: int = 10
    lr: float = 1e-3
    temperature: float = 2.0
    label_weight: float = 0.0
    gram_weight: float = 0.0
    schedule: str = "one-shot"
    steps: int = 1
    calibration_samples: int = 5000
    seed: int = 0
    device: str | torch.device | None = None
    amp: bool = False
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # numpy's numbers are no JSON
            value = getattr(self, field.name)
            if isinstance(value, Real) and not isinstance(value, int | float):
                plain = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, field.name, plain)
        self._choice("criterion", CRITERIA)
        self._choice("allocation", ALLOCATIONS)
        for name in ("reconstruct", "shared_range", "amp", "freeze_batch_norm"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"CompressConfig: {name} must be True or False, got {value!r}")
        self._integer("bins", 2, 256)
        self._integer("pair_bins", 2, 256)
        self._integer("epochs", 0)
        self._integer("steps", 1)
        self._integer("calibration_samples", 2)
        self._integer("seed", 0, 2**63 - 1)
        self._real("lr", positive=True)
        self._real("temperature", positive=True)
        self._real("label_weight", positive=False)
        self._real("gram_weight", positive=False)
        self._choice("estimator", ESTIMATORS)
        self._choice("schedule", SCHEDULES)
        if self.schedule == "one-shot" and self.steps != 1:
            raise ValueError(
                f'CompressConfig: steps must be 1 with schedule="one-shot", got {self.steps}; '
                'choose schedule="iterative" or "cubic"'
            )
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    "CompressConfig: device must be None or name a torch device, "
                    f"got {self.device!r}"
                ) from error

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict that is JSON as it stands."""
        settings = dataclasses.asdict(self)
        settings["device"] = None if self.device is None else str(self.device)
        return settings

    def _integer(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        rule = f"at least {low}" if high is None else f"between {low} and {high}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"CompressConfig: {name} must be an integer, got {value!r}")
        if value < low or (high is not None and value > high):
            raise ValueError(f"CompressConfig: {name} must be {rule}, got {value}")

    def _real(self, name: str, *, positive: bool) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"CompressConfig: {name} must be a number, got {value!r}")
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            rule = "positive and finite" if positive else "finite and not negative"
            raise ValueError(f"CompressConfig: {name} must be {rule}, got {value}")

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str):
            raise TypeError(f"CompressConfig: {name} must be a string, got {value!r}")
        if value not in choices:
            raise ValueError(
                f"CompressConfig: {name} must be one of {', '.join(choices)}, got {value!r}"
            )

"""How close a student's predictions are to its teacher's, with intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, batches, rows_of_samples
from .errors import SimMIMError, about
from .forward import ForwardFn, forward
from .intervals import (
    bootstrap_mean,
    clopper_pearson,
    effective_trials,
    proportion_at_least,
    spearman,
)
from .labels import true_classes
from .modes import device_of, evaluating, seeded
from .outputs import kl_per_sample

_WORST = 5
_ECE_BINS = 15
_KEPT_ROWS = 1000

# Outputs whose variance is less, as a share of their mean square, do not vary.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found, as dicts that are JSON as they stand.

    Attributes:
        fidelity: kl, kl_interval, agreement, agreement_interval, ... of the pair.
        teacher: predictive_information and accuracy of the teacher.
        student: the same of the student.
    """

    fidelity: dict[str, Any]
    teacher: dict[str, Any]
    student: dict[str, Any]


def compare(
    teacher: nn.Module,
    student: nn.Module,
    data: Iterable[Batch],
    *,
    noise: float | None = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    name: str = "evaluate",
) -> Comparison:
    """Compares the models' predictions on the data, both in eval mode.

    Intervals are at 95%: a percentile bootstrap over samples for the KL and the cosine,
    Clopper-Pearson for the agreement. Where a model answers for each token these are compared, but
    those of a sample are no independent ones, and intervals are as wide as that makes them.
    Classes that are labels serve accuracy and calibration.

    Args:
        teacher: the original.
        student: the compressed model, on the same device.
        data: re-iterable of batches.
        noise: None for classes; for values and embeddings the Gaussian output noise's variance.
        forward_fn: as in ``compress``.
        seed: the bootstrap's.
        name: how errors name the data.

    Raises:
        SimMIMError: data that a model cannot take, labels that are no classes of its outputs, or
            outputs that cannot be compared.
    """
    device = device_of(teacher)
    meter = _Classes() if noise is None else _Vectors(noise)
    with evaluating(teacher, student), torch.no_grad():
        for batch in batches(data, device=device, name=name):
            with about(name):
                t = forward(teacher, batch, forward_fn).double()
                s = forward(student, batch, forward_fn).double()
            if t.shape != s.shape:
                raise SimMIMError(
                    f"{name}: the teacher's outputs are {list(t.shape)} and the student's "
                    f"{list(s.shape)}; give models with the same outputs"
                )
            if not (torch.isfinite(t).all() and torch.isfinite(s).all()):
                whose = "teacher" if not torch.isfinite(t).all() else "student"
                raise SimMIMError(
                    f"{name}: the {whose}'s outputs are not finite; check the data and the weights"
                )
            with about(name):
                labels = true_classes(batch, t, forward_fn) if noise is None else None
            meter.update(t, s, labels, rows_of_samples(t, batch))
    return meter.result(seed)


def check_comparable(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    noise: float | None,
    forward_fn: ForwardFn | None,
    name: str,
) -> None:
    """Raises what ``compare`` would for the first of the batches, before long work is done."""
    with seeded(0):  # leaves the random state to what follows
        first = next(batches(data, device=device_of(model), name=name))
        compare(model, model, [first], noise=noise, forward_fn=forward_fn, name=name)


class _Classes:
    """Streams what a comparison of classifiers needs: a few numbers a sample."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._labelled: list[Tensor] = []
        self._mean: Tensor | None = None
        self._entropy = torch.zeros(2, dtype=torch.float64, device="cpu")

    def update(
        self, teacher: Tensor, student: Tensor, labels: Tensor | None, counts: Tensor
    ) -> None:
        self._counts.append(counts)
        both = torch.stack([teacher, student]).log_softmax(dim=-1)
        p = both.exp()
        total = p.sum(dim=1).cpu()
        self._mean = total if self._mean is None else self._mean + total
        self._entropy += torch.special.entr(p).sum(dim=(1, 2)).cpu()
        confidence, chosen = p.max(dim=-1)
        kl = kl_per_sample(teacher, student).clamp(min=0)  # rounding can be below
        self._rows.append(torch.stack([kl, chosen[0].double(), chosen[1].double()]).cpu())
        if labels is not None:
            correct = (chosen == labels).double()
            self._labelled.append(torch.cat([confidence, correct])[:, labels >= 0].cpu())

    def result(self, seed: int) -> Comparison:
        assert self._mean is not None
        kl, of_teacher, of_student = torch.cat(self._rows, dim=1)
        n, counts = len(kl), torch.cat(self._counts)
        agree = of_teacher == of_student
        trials = effective_trials(agree, counts)
        agreed = int(agree.sum()) * trials / n
        marginal = torch.special.entr(self._mean / n).sum(dim=1)
        information = (marginal - self._entropy / n).clamp(min=0).tolist()
        labelled = (
            torch.cat(self._labelled, dim=1) if self._labelled else torch.empty(4, 0, device="cpu")
        )
        accuracy: list[float | None] = [None, None]
        ece: list[float | None] = [None, None]
        if labelled.shape[1] > 0:
            accuracy = labelled[2:].mean(dim=1).tolist()
            ece = [calibration_error(labelled[i], labelled[2 + i]) for i in range(2)]
        fidelity = {
            "output": "classes",
            "samples": n,
            "inputs": len(counts),
            "kl": float(kl.mean()),
            "kl_interval": list(bootstrap_mean(kl, counts, seed=seed)),
            "agreement": float(agree.double().mean()),
            "agreement_interval": list(clopper_pearson(agreed, trials)),
            "agreement_at_least": proportion_at_least(agreed, trials),
            "worst_classes": _worst_classes(of_teacher.long(), agree, kl),
        }
        models = [
            {
                "predictive_information": information[i],
                "accuracy": accuracy[i],
                "calibration_error": ece[i],
            }
            for i in range(2)
        ]
        return Comparison(fidelity, *models)


class _Vectors:
    """Streams what a comparison of values or embeddings needs."""

    def __init__(self, noise: float) -> None:
        self._noise = noise
        self._rows: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._sum = torch.zeros((), device="cpu")
        self._square = torch.zeros((), device="cpu")

    def update(
        self, teacher: Tensor, student: Tensor, labels: Tensor | None, counts: Tensor
    ) -> None:
        self._counts.append(counts)
        both = torch.stack([teacher, student])
        self._sum = self._sum + both.sum(dim=1).cpu()
        self._square = self._square + (both.mT @ both).cpu()
        kl = kl_per_sample(teacher, student, noise=self._noise)
        cosine = torch.cosine_similarity(teacher, student, dim=1)
        self._rows.append(torch.stack([kl, cosine]).cpu())
        room = _KEPT_ROWS - sum(kept.shape[1] for kept in self._kept)
        if room > 0:
            self._kept.append(both[:, :room].cpu())

    def result(self, seed: int) -> Comparison:
        kl, cosine = torch.cat(self._rows, dim=1)
        n, counts = len(kl), torch.cat(self._counts)
        mean = self._sum / n
        covariance = self._square / n - mean[:, :, None] * mean[:, None, :]
        # I(T + noise; input) of a Gaussian with that covariance: 1/2 log det(I + C / noise).
        eye = torch.eye(covariance.shape[-1], dtype=torch.float64, device="cpu")
        information = (0.5 * torch.logdet(eye + covariance / self._noise)).tolist()
        spread = covariance[0].diagonal().sum() / (2 * self._noise)
        varies = covariance[0].trace() > _ROUNDING * self._square[0].trace() / n
        fidelity = {
            "output": "vectors",
            "samples": n,
            "inputs": len(counts),
            "kl": float(kl.mean()),
            "kl_interval": list(bootstrap_mean(kl, counts, seed=seed)),
            "agreement": None,
            "agreement_interval": None,
            "relative_error": float((kl.mean() / spread).sqrt()) if varies else None,
            "cosine": float(cosine.mean()),
            "cosine_interval": list(bootstrap_mean(cosine, counts, seed=seed)),
            "rank_correlation": _rank_correlation(*torch.cat(self._kept, dim=1)),
        }
        models = [{"predictive_information": i, "accuracy": None} for i in information]
        return Comparison(fidelity, *models)


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Expected calibration error in 15 equal bins (Guo et al., 2017); both are [samples]."""
    bins = (confidence * _ECE_BINS).long().clamp(max=_ECE_BINS - 1)
    gap = torch.zeros(_ECE_BINS, dtype=torch.float64, device="cpu").index_add_(
        0, bins, confidence - correct
    )
    return float(gap.abs().sum() / len(confidence))


def _worst_classes(teacher_class: Tensor, agree: Tensor, kl: Tensor) -> list[dict[str, Any]]:
    """The classes, by the teacher's prediction, in which the student agrees least."""
    samples = torch.bincount(teacher_class)
    agreed = torch.bincount(teacher_class, weights=agree.double()) / samples
    divergence = torch.bincount(teacher_class, weights=kl) / samples
    present = samples.nonzero().flatten()
    order = present[agreed[present].argsort(stable=True)[:_WORST]]
    return [
        {
            "class": int(c),
            "samples": int(samples[c]),
            "agreement": float(agreed[c]),
            "kl": float(divergence[c]),
        }
        for c in order
    ]


def _rank_correlation(teacher: Tensor, student: Tensor) -> float | None:
    """Spearman's correlation of the pairwise cosine similarities; of values for one output.

    None where fewer than two can be compared, or they do not vary.
    """
    if teacher.shape[1] == 1:
        pair = teacher[:, 0], student[:, 0]
    else:
        i, j = torch.triu_indices(len(teacher), len(teacher), 1)
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (teacher, student)]
        pair = tuple((x @ x.T)[i, j] for x in unit)  # type: ignore[assignment]
    if len(pair[0]) < 2:
        return None
    value = spearman(*pair)
    return None if math.isnan(value) else value

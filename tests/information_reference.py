"""The information operators again, in plain numpy: slow, obvious, and sharing no code with them."""

from __future__ import annotations

import math

import numpy as np
import torch
from discretization_cases import discretize_reference
from torch import Tensor


def xlogy(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    return torch.special.xlogy(*(torch.as_tensor(v, dtype=torch.float64) for v in (x, y))).numpy()


def digamma(x: np.ndarray) -> np.ndarray:
    return torch.special.digamma(torch.from_numpy(x)).numpy()


def estimate(counts: np.ndarray, estimator: str = "plugin", alphabet: float | None = None) -> float:
    """Entropy in nats of a table of counts; the alphabet is its size unless given."""
    flat = np.asarray(counts, dtype=np.float64).ravel()
    alphabet = alphabet or flat.size
    n = flat[flat > 0]
    total = n.sum()
    p = n / total
    if estimator == "plugin":
        return float(-xlogy(p, p).sum())
    if estimator == "miller_madow":
        return float(-xlogy(p, p).sum() + (n.size - 1) / (2 * total))
    if estimator == "grassberger":
        sign = np.where(n % 2 == 0, 1.0, -1.0)
        g = digamma(n) + sign / 2 * (digamma((n + 1) / 2) - digamma(n / 2))
        return float(math.log(total) - (n * g).sum() / total)
    if estimator == "chao_shen":
        singletons = min((n == 1).sum(), total - 1)
        p = p * (1 - singletons / total)
        with np.errstate(divide="ignore"):
            seen = -np.expm1(total * np.log1p(-p))
        return float(-(xlogy(p, p) / seen).sum())
    assert estimator == "shrink"
    distance = (p**2).sum() - 1 / alphabet
    intensity = 1.0
    if distance > 1e-15:
        intensity = min(1.0, (1 - (p**2).sum()) / ((total - 1) * distance))
    shrunk = intensity / alphabet + (1 - intensity) * p
    empty = intensity / alphabet
    return float(-xlogy(shrunk, shrunk).sum() - (alphabet - n.size) * xlogy(empty, empty))


def combine(
    quantity: str, x: float, y: float, joint: float, normalized: str | None = None
) -> float:
    if quantity == "joint_entropy":
        return joint
    if quantity == "conditional_entropy":
        return joint - y
    value = x + y - joint
    if normalized is None:
        return value
    if min(x, y) <= 0:
        return 0.0
    mean = {"min": min(x, y), "max": max(x, y), "arithmetic": (x + y) / 2}
    return value / mean.get(normalized, math.sqrt(max(x * y, 0)))


def joint_counts(x: np.ndarray, y: np.ndarray, x_size: int, y_size: int) -> np.ndarray:
    """Of codes [samples]; what is not below the size counts nowhere."""
    valid = (x < x_size) & (y < y_size)
    cells = x[valid].astype(np.int64) * y_size + y[valid]
    return np.bincount(cells, minlength=x_size * y_size).reshape(x_size, y_size)


def of_counts(
    counts: np.ndarray, quantity: str, estimator: str, normalized: str | None, base: float | None
) -> float:
    entropies = [estimate(c, estimator) for c in (counts.sum(1), counts.sum(0), counts)]
    value = combine(quantity, *entropies, normalized)
    return value / (math.log(base) if base and (normalized is None) else 1)


def joint_histogram(x: Tensor, y: Tensor, x_bins: int, y_bins: int, caller: str = "") -> Tensor:
    rows = [[joint_counts(a.numpy(), b.numpy(), x_bins, y_bins) for b in y] for a in x]
    return torch.from_numpy(np.array(rows, dtype=np.int64))


def joint_information(
    counts: Tensor,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    options = (quantity, estimator, normalized, base)
    values = [[of_counts(cells, *options) for cells in row] for row in counts.numpy()]
    return torch.tensor(values, dtype=torch.float32)


def pairwise_information(
    x: Tensor,
    y: Tensor | None,
    x_bins: int,
    y_bins: int | None,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    counts = joint_histogram(x, x if y is None else y, x_bins, x_bins if y is None else y_bins)
    result = joint_information(counts, quantity, estimator, normalized, base)
    if y is None:  # H(X,X) is H(X) under every estimator
        for i, own in enumerate(x):
            codes = own.numpy()
            h = estimate(np.bincount(codes[codes < x_bins], minlength=x_bins), estimator)
            value = combine(quantity, h, h, h, normalized)
            result[i, i] = value / (math.log(base) if base and normalized is None else 1)
    return result


def label_information(
    x: Tensor,
    labels: Tensor,
    bins: int,
    low: Tensor | None,
    high: Tensor | None,
    edges: Tensor | None,
    nan_policy: str,
    outliers: str,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    codes = x.t()
    if x.is_floating_point():
        codes, _ = discretize_reference(x, bins, low, high, edges, nan_policy, outliers)
    classes = int(labels.max()) + 1
    counts = joint_histogram(codes, labels.long().unsqueeze(0), bins, classes)
    return joint_information(counts, quantity, estimator, normalized, base)[:, 0]


def soft_label_information(
    x: Tensor,
    probabilities: Tensor,
    bins: int,
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    p = probabilities.double().numpy()
    p = p / p.sum(1, keepdims=True)
    values = []
    for codes in x.numpy():
        table = np.stack([p[codes == b].sum(0) for b in range(bins)])
        values.append(of_counts(table, "mutual_information", "plugin", normalized, base))
    return torch.tensor(values, dtype=torch.float32)


def conditional_mutual_information(
    x: Tensor,
    y: Tensor | None,
    z: Tensor,
    x_bins: int,
    y_bins: int | None,
    z_bins: int | None = None,
    estimator: str = "plugin",
    base: float | None = None,
    caller: str = "",
) -> Tensor:
    y = x if y is None else y
    labels = y.dim() == 1
    y_size = int(y.max()) + 1 if labels else (x_bins if y is x else y_bins)
    z_size = z_bins or int(z.max()) + 1
    z_codes = z.reshape(-1).numpy().astype(np.int64)
    rows = []
    for a in x.numpy().astype(np.int64):
        row = []
        for b in (y.unsqueeze(0) if labels else y).numpy().astype(np.int64):
            valid = (a < x_bins) & (b < y_size) & (z_codes < z_size)
            table = np.zeros((x_bins, y_size, z_size), dtype=np.int64)
            np.add.at(table, (a[valid], b[valid], z_codes[valid]), 1)
            xyz, xz = estimate(table, estimator), estimate(table.sum(1), estimator)
            yz, own = estimate(table.sum(0), estimator), estimate(table.sum((0, 1)), estimator)
            if y is x and np.array_equal(a, b):
                xyz = xz  # the joint of x with itself is x
            row.append((xz + yz - xyz - own) / (math.log(base) if base else 1))
        rows.append(row)
    result = torch.tensor(rows, dtype=torch.float32)
    return result[:, 0] if labels else result


def predictive_information(logits: Tensor, base: float | None = None, caller: str = "") -> Tensor:
    p = torch.softmax(logits.double(), dim=1)
    marginal = -torch.xlogy(p.mean(0), p.mean(0)).sum()
    conditional = -torch.xlogy(p, p).sum(1).mean()
    return ((marginal - conditional) / (math.log(base) if base else 1)).float()


def entropy(
    counts: Tensor, estimator: str = "plugin", base: float | None = None, caller: str = ""
) -> Tensor:
    rows = counts.reshape(-1, counts.shape[-1]).numpy()
    values = [estimate(row, estimator) / (math.log(base) if base else 1) for row in rows]
    return torch.tensor(values, dtype=torch.float32).reshape(counts.shape[:-1])

"""What people write today: the estimators in pure PyTorch, as fast as it lets them be."""

from __future__ import annotations

import torch
from torch import Tensor


def codes(x: Tensor, bins: int, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Uniform bins of x [samples, features], int64."""
    return ((x - low) * (bins / (high - low))).long().clamp_(0, bins - 1)


def counts_by_scatter(code: Tensor, bins: int) -> Tensor:
    """[features, bins] int64 from codes [samples, features]."""
    slots = code + torch.arange(code.shape[1], device=code.device) * bins
    ones = torch.ones(1, dtype=torch.int64, device=code.device).expand(slots.numel())
    counts = torch.zeros(code.shape[1] * bins, dtype=torch.int64, device=code.device)
    return counts.scatter_add_(0, slots.flatten(), ones).view(code.shape[1], bins)


def entropy_of(counts: Tensor) -> Tensor:
    """Plug-in entropy over the last axis, float32 nats."""
    p = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1).float()


def entropy(x: Tensor, bins: int, low: float | None = None, high: float | None = None) -> Tensor:
    """Entropies [features] by scatter_add."""
    if low is None or high is None:
        return entropy(x, bins, *x.aminmax(dim=0))
    return entropy_of(counts_by_scatter(codes(x, bins, low, high), bins))


def information_of(joint: Tensor) -> Tensor:
    """Mutual information of counts [..., x_bins, y_bins]."""
    both = entropy_of(joint.flatten(-2))
    return entropy_of(joint.sum(-1)) + entropy_of(joint.sum(-2)) - both


def pairwise_by_one_hot(code: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """All pairs' mutual information by a matrix product of one-hot codes; exact in int8, fp32."""
    samples, features = code.shape
    one_hot = torch.zeros(samples, features * bins, dtype=dtype, device=code.device)
    one_hot.scatter_(1, code + torch.arange(features, device=code.device) * bins, 1)
    if dtype == torch.int8:
        columns = one_hot.t().contiguous()
        joint = torch._int_mm(columns, columns.t())  # the one layout that all of cuBLAS takes
    else:
        joint = one_hot.t() @ one_hot
    return information_of(joint.view(features, bins, features, bins).transpose(1, 2))


def pairwise_by_scatter(code: Tensor, other: Tensor, bins: int) -> Tensor:
    """Mutual information of every pair of columns, one column of code at a time."""
    rows = [counts_by_scatter(code[:, i : i + 1] * bins + other, bins * bins)
            for i in range(code.shape[1])]  # fmt: skip
    joint = torch.stack(rows).view(code.shape[1], other.shape[1], bins, bins)
    return information_of(joint)


def label_by_scatter(code: Tensor, labels: Tensor, bins: int, classes: int) -> Tensor:
    """Mutual information of every column with class labels."""
    joint = counts_by_scatter(code + bins * labels[:, None], bins * classes)
    return information_of(joint.view(-1, classes, bins))


def soft_label_by_one_hot(code: Tensor, probabilities: Tensor, bins: int) -> Tensor:
    """Mutual information of every column with soft labels, by a matrix product."""
    samples, features = code.shape
    one_hot = torch.zeros(samples, features * bins, device=code.device)
    one_hot.scatter_(1, code + torch.arange(features, device=code.device) * bins, 1.0)
    joint = one_hot.t() @ probabilities
    return information_of(joint.view(features, bins, -1))


def conditional_by_scatter(code: Tensor, labels: Tensor, bins: int, classes: int) -> Tensor:
    """I(X;Y|Z) of all pairs of columns given class labels."""
    share = labels.bincount(minlength=classes) / len(labels)
    parts = [pairwise_by_scatter(code[labels == z], code[labels == z], bins)
             for z in range(classes)]  # fmt: skip
    return sum(p * part for p, part in zip(share, parts, strict=True))


def permutation_p_values(
    code: Tensor, labels: Tensor, bins: int, classes: int, permutations: int, seed: int
) -> Tensor:
    """How likely every column's information is by chance: one shuffle of the labels at a time."""
    found = label_by_scatter(code, labels, bins, classes)
    generator = torch.Generator().manual_seed(seed)
    reached = torch.zeros(code.shape[1], dtype=torch.int64)
    for _ in range(permutations):
        order = torch.randperm(len(labels), generator=generator)
        reached += label_by_scatter(code, labels[order], bins, classes) >= found
    return (reached + 1).double() / (permutations + 1)


def predictive_information(logits: Tensor) -> Tensor:
    """I(prediction; input) of classifiers: the entropy of the mean less the mean of entropies."""
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return torch.special.entr(p.mean(0)).sum() + (p * log_p).sum(1).mean()


def quantile_codes(x: Tensor, bins: int) -> Tensor:
    """Codes of equally full bins: torch.quantile, then bucketize, column by column."""
    inner = torch.linspace(0, 1, bins + 1)[1:-1].to(x)
    columns = x.t().contiguous()
    return torch.stack([torch.bucketize(c, torch.quantile(c, inner), right=True) for c in columns])

"""Intervals of what is measured on tokens, which are alike within a text."""

import math

import pytest
import torch
from torch import nn

from simmim_ext.data import rows_of_samples
from simmim_ext.fidelity import compare
from simmim_ext.intervals import bootstrap_mean, clopper_pearson, effective_trials

EACH = 20


def clustered(clusters, seed, spread=1.0):
    """Values of tokens, of which those of a text share half of the variance where spread is 1."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(clusters, EACH, generator=generator)
    return (own + spread * torch.randn(clusters, 1, generator=generator)).double().flatten()


def test_fractions_of_successes_lie_between_whole_ones():
    (a, b), (c, d) = clopper_pearson(3, 10), clopper_pearson(4, 10)
    assert clopper_pearson(3.25, 10) == pytest.approx((0.75 * a + 0.25 * c, 0.75 * b + 0.25 * d))
    assert clopper_pearson(10.0, 10) == clopper_pearson(10, 10)


def test_effective_trials_are_trials_over_the_design_effect():
    counts = torch.full((4000,), EACH)
    alike = clustered(4000, 0) > 1
    share, n = float(alike.double().mean()), len(alike)
    means = alike.double().view(-1, EACH).mean(1)
    deff = float(means.var()) * EACH / (share * (1 - share))
    assert effective_trials(alike, counts) == pytest.approx(n / deff, rel=1e-3)
    assert 3 < deff < EACH / 2
    assert effective_trials(alike, torch.ones(n)) == n
    # Independent ones are worth what they are, but for the error of the estimate.
    assert effective_trials(clustered(4000, 1, spread=0) > 1, counts) > 0.93 * n
    whole = torch.repeat_interleave(means > means.median(), EACH)
    assert effective_trials(whole, counts) == pytest.approx(4000, rel=2e-3)


def test_tokens_of_one_outcome_are_worth_their_texts():
    counts = torch.tensor([3, 5, 1])
    assert effective_trials(torch.ones(9, dtype=torch.bool), counts) == 3
    assert effective_trials(torch.zeros(9, dtype=torch.bool), counts) == 3
    assert effective_trials(torch.arange(9) < 4, torch.tensor([9])) == 1


@pytest.mark.parametrize("clusters", [500, 12_000])
def test_the_bootstrap_draws_texts_as_a_whole(clusters):
    values = clustered(clusters, 2)
    counts = torch.full((clusters,), EACH)
    low, high = bootstrap_mean(values, counts, seed=0)
    half = 1.96 * float(values.view(-1, EACH).mean(1).std()) / math.sqrt(clusters)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.25 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.25 * half)
    narrow = bootstrap_mean(values, seed=0)
    assert high - low > 2.5 * (narrow[1] - narrow[0])


def test_texts_of_unequal_lengths_count_by_their_tokens():
    values, counts = torch.tensor([1.0, 1, 1, 1, 0]), torch.tensor([4, 1])
    low, high = bootstrap_mean(values, counts, seed=0)
    assert (low, high) == (0, 1)  # one text twice, or the other
    half = bootstrap_mean(values, counts, seed=0, confidence=0.2)
    assert half == pytest.approx((0.8, 0.8))


def test_rows_are_of_samples_tokens_or_nothing_known():
    x, mask = torch.zeros(3, 5), torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    rows = [rows_of_samples(torch.zeros(n, 2), x).tolist() for n in (0, 1, 3, 6, 7)]
    assert rows == [[], [1], [1, 1, 1], [2, 2, 2], [1] * 7]
    batch = {"input_ids": torch.zeros(3, 3), "attention_mask": mask}
    assert rows_of_samples(torch.zeros(5, 2), batch).tolist() == [2, 3]
    assert rows_of_samples(torch.zeros(9, 2), batch).tolist() == [3, 3, 3]
    assert rows_of_samples(torch.zeros(3, 2), batch).tolist() == [1, 1, 1]


class Tokens(nn.Module):
    """Answers for each token with two classes; sure of the first where it is above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return torch.stack([x, torch.full_like(x, self.threshold)], -1)


@pytest.mark.parametrize(("texts", "share"), [(10, 0.89), (50, 0.91)])
def test_intervals_of_tokens_hold_what_they_should(texts, share):
    """Of fifty texts some 95% hold the truth, of ten 92% of KL, which is skewed, and 95%.

    Were tokens independent, 62% of KL and 82% of agreement would.
    """
    models = Tokens(0.0), Tokens(1.0)
    truth = compare(*models, [clustered(20_000, 10**6).view(-1, EACH)]).fidelity
    held = {"kl": 0, "agreement": 0}
    for seed in range(300):
        found = compare(*models, [clustered(texts, seed).view(-1, EACH)], seed=seed).fidelity
        assert (found["samples"], found["inputs"]) == (texts * EACH, texts)
        for name in held:
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high
            held[name] += low <= truth[name] <= high
    assert all(hits >= share * 300 for hits in held.values()), held

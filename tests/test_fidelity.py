"""Intervals against scipy, and comparisons against their definitions."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from simmim_ext import SimMIMError
from simmim_ext.fidelity import calibration_error, compare
from simmim_ext.intervals import (
    bootstrap_mean,
    clopper_pearson,
    proportion_at_least,
    spearman,
    students_t,
)
from simmim_ext.outputs import kl_per_sample, noise_variance, resolve_output


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 30), (3, 7), (30, 30), (941, 1000), (9_500, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_clopper_pearson_agrees_with_scipy(k, n, confidence):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(k, n, confidence) == pytest.approx(tuple(expected), abs=1e-9)
    if k:
        bound = stats.beta.ppf(1 - confidence, k, n - k + 1)
        assert proportion_at_least(k, n, confidence) == pytest.approx(bound, abs=1e-9)


def test_clopper_pearson_refuses_impossible_counts():
    with pytest.raises(
        ValueError, match=r"successes must be between 0 and trials >= 1, got 3 of 2"
    ):
        clopper_pearson(3, 2)


@pytest.mark.parametrize("n", [400, 40_003])
def test_bootstrap_interval_is_as_wide_as_the_mean_is_uncertain(n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(1)).double() ** 3
    low, high = bootstrap_mean(values, seed=0)
    assert (low, high) == bootstrap_mean(values, seed=0)
    half = 1.96 * float(values.std()) / math.sqrt(n)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.25 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.25 * half)


@pytest.mark.parametrize(
    ("freedom", "error"), [(1, 0.12), (2, 8e-3), (3, 2e-3), (9, 1e-5), (999_999, 1e-9)]
)
@pytest.mark.parametrize("tail", [0.025, 0.1])
def test_students_t_agrees_with_scipy(freedom, error, tail):
    stats = pytest.importorskip("scipy.stats")
    assert students_t(tail, freedom) == pytest.approx(stats.t.isf(tail, freedom), rel=error)


@pytest.mark.parametrize("n", [1, 5, 10])
def test_intervals_of_few_values_hold_what_they_should(n):
    """Some 95% of ten hold the truth, 92% of five; plain percentiles would at 90% and 83%."""
    draws = torch.randn(600, n, generator=torch.Generator().manual_seed(0))
    intervals = [bootstrap_mean(values, seed=seed) for seed, values in enumerate(draws)]
    if n == 1:
        assert intervals == [(x, x) for x in draws.double().flatten().tolist()]
        return
    held = sum(low <= 0 <= high for low, high in intervals) / len(intervals)
    assert held > {5: 0.89, 10: 0.93}[n], held


def test_spearman_agrees_with_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    x = torch.randint(6, (50,), generator=torch.Generator().manual_seed(1)).double()
    y = x + torch.randint(5, (50,), generator=torch.Generator().manual_seed(2))
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(spearman(x, torch.ones(50, dtype=torch.float64)))


def logits(scale, seed, n=60, classes=4):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)).double()


class Column(nn.Module):
    """Answers with the columns of its input from ``start`` on."""

    def __init__(self, start, classes=4):
        super().__init__()
        self.start, self.stop = start, start + classes

    def forward(self, x):
        return x[:, self.start : self.stop]


def test_compare_classes_is_what_its_words_say():
    t, s = logits(2, 1), logits(2, 2) + logits(2, 1)
    labels = torch.arange(60) % 4
    labels[:5] = -100
    x = torch.cat([t, s], dim=1)
    data = [(x[:7], labels[:7]), (x[7:], labels[7:])]
    found = compare(Column(0), Column(4), data)
    p, q = t.softmax(1), s.softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    agree = (t.argmax(1) == s.argmax(1)).double()
    assert found.fidelity["kl"] == pytest.approx(float(kl))
    assert found.fidelity["agreement"] == pytest.approx(float(agree.mean()))
    low, high = found.fidelity["agreement_interval"]
    assert low < found.fidelity["agreement_at_least"] < float(agree.mean()) < high
    assert found.fidelity["samples"] == 60
    for side, outputs in ((found.teacher, p), (found.student, q)):
        mean = outputs.mean(0)
        information = -(mean * mean.log()).sum() + (outputs * outputs.log()).sum(1).mean()
        assert side["predictive_information"] == pytest.approx(float(information))
        correct = (outputs.argmax(1) == labels)[5:].double()
        assert side["accuracy"] == pytest.approx(float(correct.mean()))
        assert side["calibration_error"] == pytest.approx(
            calibration_error(outputs.max(1).values[5:], correct)
        )
    worst = found.fidelity["worst_classes"]
    assert [w["agreement"] for w in worst] == sorted(w["agreement"] for w in worst)
    assert sum(w["samples"] for w in worst) == 60
    of_class = t.argmax(1) == worst[0]["class"]
    assert worst[0]["agreement"] == pytest.approx(float(agree[of_class].mean()))


def test_a_divergence_of_nothing_but_rounding_is_not_negative():
    t = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).double()
    found = compare(Column(0), Column(4), [torch.cat([t, t + 0.1], dim=1)])
    assert 0 <= found.fidelity["kl_interval"][0] <= found.fidelity["kl"] < 1e-12


def test_an_identical_student_is_perfect_and_labels_are_optional():
    found = compare(Column(0), Column(0), [logits(1, 1)])
    assert found.fidelity["kl"] == 0
    assert found.fidelity["kl_interval"] == [0, 0]
    assert found.fidelity["agreement"] == 1
    assert found.fidelity["agreement_interval"][1] == 1
    assert found.teacher["accuracy"] is None
    assert found.teacher == found.student


class Next(nn.Module):
    """A causal language model: behind token i it is certain of i + 1."""

    def forward(self, input_ids, attention_mask=None):
        return 20.0 * nn.functional.one_hot((input_ids + 1) % 16, 16)


def accuracy(batch):
    return compare(Next(), Next(), [batch]).teacher["accuracy"]


def test_a_causal_language_models_labels_are_its_next_tokens():
    tokens = (torch.arange(12) + torch.arange(30)[:, None]) % 16
    mask = (torch.arange(12) < 8).expand(30, -1).long()
    prompt = tokens.clone()
    prompt[:, :5] = -100
    padded = {"input_ids": tokens * mask, "attention_mask": mask}
    assert accuracy({"input_ids": tokens, "labels": tokens}) == 1
    assert accuracy({"input_ids": tokens, "labels": prompt.int()}) == 1
    assert accuracy({**padded, "labels": tokens * mask}) == 1
    assert accuracy({"input_ids": tokens, "labels": (tokens + 1) % 16}) == 1
    assert accuracy({"input_ids": tokens, "labels": (tokens + 2) % 16}) == 0


def test_labels_of_tokens_are_masked_as_the_outputs_are():
    tokens = torch.randint(16, (30, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[:15, 5:] = 0
    labels = torch.where(mask.bool(), (tokens + 1) % 16, 0)
    assert accuracy({"input_ids": tokens, "attention_mask": mask, "labels": labels}) == 1
    text = r"^evaluate: labels, .* for each of 180 outputs, .* got torch.int64 \[30, 5\]; correct"
    with pytest.raises(SimMIMError, match=text):
        accuracy({"input_ids": tokens, "attention_mask": mask, "labels": labels[:, :5]})


UNUSABLE = {
    "beyond": (torch.arange(60) % 4 + 1, "class 4"),
    "more": (torch.arange(61) % 4, r"torch.int64 \[61\]"),
    "two each": (torch.zeros(60, 2), r"torch.float32 \[60, 2\]"),
    "fractions": (torch.full((60,), 0.5), r"torch.float32 \[60\]"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_labels_that_are_no_classes_of_the_outputs(kind):
    labels, got = UNUSABLE[kind]
    data = [(torch.cat([logits(1, 1), logits(1, 2)], dim=1), labels)]
    text = r"^evaluate: labels, .* class below 4 \(or negative, for none\) for each of 60 outputs"
    with pytest.raises(SimMIMError, match=f"{text}, .*, got {got}; correct them, or leave"):
        compare(Column(0), Column(4), data)
    found = compare(Column(0), Column(4), data, forward_fn=lambda model, batch: model(batch[0]))
    assert found.teacher["accuracy"] is None  # any item may be an input of it
    assert compare(Column(0), Column(4), data, noise=1.0).teacher["accuracy"] is None


def test_shares_of_classes_are_labels_without_an_accuracy():
    x = torch.cat([logits(1, 1), logits(1, 2)], dim=1)
    data = [(x, x[:, :4].softmax(1))]
    assert compare(Column(0), Column(4), data).teacher["accuracy"] is None


def test_calibration_error_of_a_hand_made_case():
    confidence = torch.tensor([0.9, 0.9, 0.5, 0.5]).double()
    correct = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
    assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.4)


def test_compare_vectors_is_what_its_words_say():
    t = logits(1, 1)
    s = t + 0.1 * logits(1, 2)
    noise = 0.05 * float(t.var(0, correction=0).mean())
    found = compare(Column(0), Column(4), [torch.cat([t, s], dim=1)], noise=noise)
    error = (t - s).square().sum() / (t - t.mean(0)).square().sum()
    assert found.fidelity["relative_error"] == pytest.approx(math.sqrt(float(error)))
    assert found.fidelity["kl"] == pytest.approx(float((t - s).square().sum(1).mean() / 2 / noise))
    cosine = torch.cosine_similarity(t, s).mean()
    assert found.fidelity["cosine"] == pytest.approx(float(cosine))
    assert 0.9 < found.fidelity["rank_correlation"] < 1
    assert found.fidelity["agreement"] is None
    covariance = torch.cov(t.T, correction=0)
    expected = 0.5 * torch.logdet(torch.eye(4).double() + covariance / noise)
    assert found.teacher["predictive_information"] == pytest.approx(float(expected))
    alone = compare(Column(0, 1), Column(4, 1), [torch.cat([t, s], dim=1)], noise=noise)
    assert alone.fidelity["rank_correlation"] == pytest.approx(spearman(t[:, 0], s[:, 0]))


def test_compare_names_outputs_that_cannot_be_compared():
    x = torch.rand(3, 8)
    with pytest.raises(SimMIMError, match=r"the teacher's outputs are \[3, 4\] and the student's"):
        compare(Column(0), Column(4, 3), [x])
    x[1, 6] = math.nan
    with pytest.raises(SimMIMError, match=r"evaluate: the student's outputs .* and the weights"):
        compare(Column(0), Column(4), [x])
    with pytest.raises(SimMIMError, match=r"evaluate: no sample came out of an empty list"):
        compare(Column(0), Column(4), [])


@pytest.mark.parametrize(
    ("batch", "model", "expected"),
    [
        (torch.randn(5, 4), Column(0), "classes"),
        (torch.randn(5, 4), Column(0, 1), "values"),
        ((torch.randn(5, 4), torch.arange(5) % 4), Column(0), "classes"),
        ((torch.randn(5, 4), torch.rand(5, 4)), Column(0), "values"),
        ((torch.randn(5, 4), torch.rand(5)), Column(0), "values"),
        ((torch.randn(5, 4), torch.ones(5, 1)), Column(0, 1), "values"),
        ((torch.randn(5, 4), torch.eye(4)[torch.arange(5) % 4]), Column(0), "classes"),
        ((torch.randn(5, 4), torch.rand(5, 4).softmax(1)), Column(0), "classes"),
    ],
)
def test_auto_output_follows_labels_and_shape(batch, model, expected):
    assert resolve_output("auto", model, batch) == expected


@pytest.mark.parametrize(("outputs", "expected"), [(4, "classes"), (1, "values")])
def test_auto_output_with_a_forward_fn_follows_shape_alone(outputs, expected):
    batch = (torch.randn(5, 4), torch.rand(5, 4))  # both may be inputs of it
    found = resolve_output("auto", Column(0), batch, lambda model, b: (b[0] + b[1])[:, :outputs])
    assert found == expected


@pytest.mark.parametrize(
    ("key", "expected"), [("logits", "classes"), ("last_hidden_state", "embeddings")]
)
def test_auto_output_knows_a_dicts_items_by_name(key, expected):
    class Named(nn.Module):
        def forward(self, x):
            return {key: x[:, None] if key == "last_hidden_state" else x}

    assert resolve_output("auto", Named(), torch.randn(5, 4)) == expected


def test_outputs_that_cannot_serve_say_what_to_do():
    with pytest.raises(ValueError, match=r"output must be one of auto, classes, .* got 'text'"):
        resolve_output("text", Column(0), torch.randn(5, 4))
    with pytest.raises(SimMIMError, match=r"needs at least two outputs, got 1; pass output="):
        resolve_output("classes", Column(0, 1), torch.randn(5, 4))
    with pytest.raises(SimMIMError, match=r"returns probabilities, and logits are needed"):
        resolve_output("auto", Column(0), torch.randn(5, 4).softmax(1))
    with pytest.raises(SimMIMError, match=r"outputs do not vary over 5 samples"):
        noise_variance(Column(0), [torch.ones(5, 4)])


def test_kl_matches_torch_at_every_temperature():
    t, s = logits(3, 1), logits(3, 2)
    for temperature in (1.0, 2.0):
        expected = nn.functional.kl_div(
            (s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean"
        )
        assert kl_per_sample(t, s, temperature=temperature).mean() == pytest.approx(float(expected))


@pytest.mark.parametrize("samples", [1, 2, 3, 100])
@pytest.mark.parametrize("outputs", [1, 4])
def test_outputs_that_do_not_vary_have_no_relative_error(samples, outputs):
    x = torch.rand(1, 8).expand(samples, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(Column(0, outputs), Column(4, outputs), [x], noise=0.1)
    assert found.fidelity["relative_error"] is None
    json.dumps([found.fidelity, found.teacher, found.student], allow_nan=False)

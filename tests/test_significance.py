"""Independence tests against scipy, brute force, and what theory says of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inputs import normal
from scipy.stats import chi2_contingency, kstest
from torch import Tensor

from simmim_ext import Discretized, discretize, independence_test, mutual_information, significance


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(features: int, samples: int, bins: int, missing: float = 0.0, seed: int = 0) -> Tensor:
    result = torch.randint(0, bins, (features, samples), generator=random(seed)).to(torch.uint8)
    return result.masked_fill(torch.rand(result.shape, generator=random(seed)) < missing, 255)


def table(x: Tensor, y: Tensor, missing: bool = True) -> np.ndarray:
    both = (x != 255) & (y != 255) if missing else torch.ones_like(x, dtype=torch.bool)
    counts = np.zeros((256, int(y.max()) + 1), dtype=np.int64)
    np.add.at(counts, (x[both].long().numpy(), y[both].long().numpy()), 1)
    return counts[counts.any(1)][:, counts.any(0)]


def expected(counts: np.ndarray) -> tuple[float, float, float]:
    result = chi2_contingency(counts, correction=False, lambda_="log-likelihood")
    return float(result.statistic), float(result.pvalue), float(result.dof)


@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["whole", "missing"])
def test_g_test_agrees_with_scipy(missing: float) -> None:
    x, y = codes(3, 300, 5, missing, 1), codes(10, 300, 4, missing / 2, 2)
    y[0] = torch.where(y[0] == 255, y[0], x[0].clamp(max=3))
    y[1, y[1] == 3] = 2  # an empty bin
    found = independence_test(Discretized(x, 5), Discretized(y, 4))
    for i in range(3):
        for j in range(10):
            statistic, p_value, degrees = expected(table(x[i], y[j]))
            assert found.statistic[i, j].item() == pytest.approx(statistic, rel=1e-5, abs=1e-4)
            assert found.p_value[i, j].item() == pytest.approx(p_value, rel=1e-4, abs=1e-12)
            assert found.degrees_of_freedom[i, j].item() == degrees
    assert found.p_value[0, 0] < 1e-9


@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["whole", "missing"])
@pytest.mark.parametrize("classes", [3, 7000])
def test_g_test_of_labels_agrees_with_scipy(classes: int, missing: float) -> None:
    x = codes(4, 900, 6, missing, 3)
    labels = torch.randint(0, classes, (900,), generator=random(4))
    found = independence_test(Discretized(x, 6), labels)
    assert found.p_value.shape == (4,)
    for i in range(4):
        statistic, p_value, degrees = expected(table(x[i], labels, True))
        assert found.statistic[i].item() == pytest.approx(statistic, rel=1e-5)
        assert found.p_value[i].item() == pytest.approx(p_value, rel=1e-4)
        assert found.degrees_of_freedom[i].item() == degrees


@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["whole", "missing"])
@pytest.mark.parametrize("kind", ["features", "few labels", "many labels"])
def test_permutations_by_brute_force(kind: str, missing: float) -> None:
    """The information of every shuffled y, one permutation and one pair at a time."""
    x = Discretized(codes(3, 600, 4, missing, 5), 4)
    y: Tensor | Discretized = Discretized(codes(2, 600, 3, missing, 6), 3)
    if kind != "features":
        y = torch.randint(0, 3 if kind == "few labels" else 4000, (600,), generator=random(6))
    found = independence_test(x, y, method="permutation", permutations=19, seed=7)
    observed, generator = mutual_information(x, y), random(7)
    reached = torch.zeros_like(observed)
    for _ in range(19):
        order = torch.randperm(600, generator=generator)
        if isinstance(y, Tensor):
            reached += mutual_information(x, y[order]) >= observed
            continue
        shuffled = y.codes.clone()
        for row in shuffled:
            valid = [i for i in order.tolist() if row[i] != 255]
            row[row != 255] = row[torch.tensor(valid)]
        reached += mutual_information(x, Discretized(shuffled, 3)) >= observed
    assert torch.equal(found.p_value.float(), (reached + 1) / 20)
    assert torch.equal(found.information, observed)


@pytest.mark.parametrize("method", ["g", "permutation"])
def test_p_is_uniform_where_independent(method: str) -> None:
    x, y = Discretized(codes(20, 2000, 3, seed=8), 3), Discretized(codes(20, 2000, 4, seed=9), 4)
    p = independence_test(x, y, method=method, permutations=199).p_value.flatten()
    assert kstest(p.numpy(), "uniform").pvalue > 0.01
    assert (p > 0).all()
    assert (p <= 1).all()


@pytest.mark.parametrize("method", ["g", "permutation"])
def test_dependence_shows(method: str) -> None:
    x = normal(500, 4)
    y = x[:, :2] + normal(500, 2, 1)
    labels = (x[:, 3] > 0).long()
    of_pairs = independence_test(x, y, method=method, bins=6).p_value
    assert of_pairs.diagonal().max() < 0.002
    assert independence_test(x, labels, method=method, bins=6).p_value[3] < 0.002
    within = independence_test(torch.cat([x, y], 1), method=method, bins=6).p_value
    assert torch.equal(within, within.t())
    assert within[0, 4] < 0.002
    assert within.diagonal().max() < 0.002


@pytest.mark.parametrize("method", ["g", "permutation"])
def test_constant_features_are_independent_of_all(method: str) -> None:
    x, y = normal(100, 3), normal(100, 2, 1)
    x[:, 1], y[:, 0] = 7, -1
    for found in (independence_test(x, y, method=method, permutations=10).p_value,
                  independence_test(x, method=method, permutations=10).p_value):  # fmt: skip
        assert found[1].eq(1).all()
    assert independence_test(x, y, method=method).p_value[:, 0].eq(1).all()
    assert independence_test(x, torch.zeros(100).long(), method=method).p_value.eq(1).all()


def test_result_does_not_depend_on_batches_or_threads(monkeypatch, threads) -> None:
    x, y = normal(300, 5), normal(300, 7, 1)
    y[::9, 3] = torch.nan
    keywords = {"method": "permutation", "permutations": 50, "nan_policy": "omit"}
    whole = independence_test(x, y, **keywords)
    g_whole = independence_test(x, y, nan_policy="omit")
    monkeypatch.setattr(significance, "_BYTES", 4096)
    threads(2)
    for a, b in ((whole, independence_test(x, y, **keywords)),
                 (g_whole, independence_test(x, y, nan_policy="omit"))):  # fmt: skip
        for name in ("information", "statistic", "degrees_of_freedom", "p_value"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    assert not torch.equal(whole.p_value, independence_test(x, y, seed=1, **keywords).p_value)


def test_arguments() -> None:
    x = discretize(normal(20, 2), bins=4)
    for keywords, error, text in (
        ({"method": "chi2"}, ValueError, "method must be one of 'g', 'permutation', got 'chi2'"),
        ({"permutations": 0}, ValueError, r"permutations must be in 1..2\*\*64 - 1, got 0"),
        ({"permutations": 1.5}, TypeError, "permutations must be an int, got float"),
        ({"seed": -1}, ValueError, r"seed must be in 0..2\*\*64 - 1, got -1"),
        ({"y": torch.zeros(3).long()}, ValueError, "y must have as many samples as x, got 3"),
        ({"bins": 4}, ValueError, "bins must be None where x is a Discretized"),
    ):
        with pytest.raises(error, match=f"independence_test: {text}"):
            independence_test(x, **keywords)


@pytest.mark.parametrize("method", ["g", "permutation"])
@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["whole", "missing"])
def test_a_default_device_changes_nothing(method: str, missing: float) -> None:
    """All that is made on the way is on x's own device."""
    x = Discretized(codes(3, 300, 5, missing, 1), 5)
    few, many = (torch.arange(300) % n for n in (3, 290))
    for y in (None, Discretized(codes(2, 300, 4, missing, 2), 4), few, many):
        plain = independence_test(x, y, method=method, permutations=5)
        with torch.device("meta"):
            found = independence_test(x, y, method=method, permutations=5)
        assert torch.equal(found.p_value, plain.p_value)


@pytest.mark.parametrize("method", ["g", "permutation"])
def test_no_features(method: str) -> None:
    x, y = torch.randn(50, 0), torch.randn(50, 3)
    for other, shape in ((torch.arange(50) % 3, (0,)), (y, (0, 3)), (None, (0, 0))):
        result = independence_test(x, other, method=method, permutations=3)
        assert result.p_value.shape == shape
    assert independence_test(y, x, method=method, permutations=3).p_value.shape == (3, 0)
    x[0] = y[0] = torch.nan
    partly = independence_test(y, x, method=method, permutations=3, nan_policy="omit")
    assert partly.p_value.shape == (3, 0)
    none = independence_test(x[:0], method=method, permutations=3, range=(0.0, 1.0))
    assert none.p_value.shape == (0, 0)

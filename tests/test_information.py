"""The information functions: known answers, peers, invariants, policies, torch.compile, errors."""

import math
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_cases import ESTIMATORS
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import simmim_ext
from simmim_ext import (
    Discretized,
    conditional_entropy,
    conditional_mutual_information,
    discretize,
    entropy,
    joint_entropy,
    mutual_information,
    predictive_information,
)

LN2 = math.log(2)


def normal(samples: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed))


def codes(rows: Any, bins: int) -> Discretized:
    return Discretized(torch.tensor(rows, dtype=torch.uint8), bins)


# Known answers


def test_cover_and_thomas_2_2_1() -> None:
    """Example 2.2.1 of Elements of Information Theory, in bits; 32 samples show its p(x, y)."""
    joint = torch.tensor([[4, 2, 1, 1], [2, 4, 1, 1], [2, 2, 2, 2], [8, 0, 0, 0]])  # rows: y
    cells = torch.repeat_interleave(torch.arange(16), joint.flatten()).to(torch.uint8)[None]
    x, y = Discretized(cells % 4, 4), Discretized(cells // 4, 4)
    assert entropy(x, base=2).item() == 7 / 4
    assert entropy(y, base=2).item() == 2
    assert conditional_entropy(x, y, base=2).item() == 11 / 8
    assert conditional_entropy(y, x, base=2).item() == 13 / 8
    assert joint_entropy(x, y, base=2).item() == 27 / 8
    assert mutual_information(x, y, base=2).item() == 3 / 8


def test_xor_and_and() -> None:
    x, y = codes([[0, 0, 1, 1]], 2), codes([[0, 1, 0, 1]], 2)
    xor, both = codes([[0, 1, 1, 0]], 2), codes([[0, 0, 0, 1]], 2)
    assert mutual_information(x, xor).item() == 0
    assert conditional_mutual_information(x, xor, y).item() == pytest.approx(LN2, abs=1e-7)
    assert conditional_mutual_information(x, y, xor).item() == pytest.approx(LN2, abs=1e-7)
    expected = (2 * LN2 - 0.75 * math.log(3)) - LN2 / 2  # H(AND) - H(AND | x)
    assert mutual_information(x, both).item() == pytest.approx(expected, abs=1e-7)
    labels = torch.tensor([0, 1, 1, 0])
    assert conditional_mutual_information(x, labels, y).item() == pytest.approx(LN2, abs=1e-7)
    assert conditional_mutual_information(x, y, labels).item() == pytest.approx(LN2, abs=1e-7)


def test_agrees_with_scikit_learn() -> None:
    x, y = normal(3000, 4), normal(3000, 3, 1) + normal(3000, 4)[:, :3]
    labels = torch.randint(0, 10, (3000,), generator=torch.Generator().manual_seed(2))
    x_codes, y_codes = discretize(x, bins=16).codes.numpy(), discretize(y, bins=16).codes.numpy()
    matrix, by_label = mutual_information(x, y), mutual_information(x, labels)
    means = {"min": "min", "max": "max", "arithmetic": "arithmetic", "geometric": "geometric"}
    for i, a in enumerate(x_codes):
        assert by_label[i].item() == pytest.approx(mutual_info_score(a, labels), abs=1e-6)
        for j, b in enumerate(y_codes):
            assert matrix[i, j].item() == pytest.approx(mutual_info_score(a, b), abs=1e-6)
    for name, average in means.items():
        mine = mutual_information(x, y, normalized=name)[1, 2].item()
        theirs = normalized_mutual_info_score(x_codes[1], y_codes[2], average_method=average)
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_predictive_information() -> None:
    certain = torch.full((4, 4), -torch.inf).fill_diagonal_(0)
    assert predictive_information(certain).item() == pytest.approx(math.log(4), abs=1e-7)
    assert predictive_information(certain, base=2).item() == 2
    assert predictive_information(normal(1, 5).expand(7, 5)).item() == pytest.approx(0, abs=1e-7)
    logits = 50 * normal(40_000, 10)
    assert predictive_information(logits).item() < math.log(10)
    shifted = logits + 1e4 * normal(40_000, 1)
    assert predictive_information(shifted.double()).item() == pytest.approx(
        predictive_information(logits).item(), abs=1e-3
    )


def test_soft_labels_that_are_certain_are_labels() -> None:
    x = normal(500, 5)
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(1))
    onehot = torch.nn.functional.one_hot(labels, 7)
    for normalized in (None, "min", "geometric"):
        torch.testing.assert_close(
            mutual_information(x, probabilities=onehot.double(), normalized=normalized),
            mutual_information(x, labels, normalized=normalized), rtol=0, atol=1e-6,
        )  # fmt: skip


# Invariants


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("quantity", [joint_entropy, mutual_information])
def test_pairs_within_are_symmetric(quantity: Callable[..., Tensor], estimator: str) -> None:
    x = normal(700, 70)
    x[:, 3] = x[:, 2]
    x[torch.rand(x.shape) < 0.1] = torch.nan
    own = quantity(x, estimator=estimator, nan_policy="omit")
    assert torch.equal(own, own.t())
    assert torch.equal(own.diagonal(), entropy(x, estimator=estimator, nan_policy="omit"))
    across = quantity(x, x.clone(), estimator=estimator, nan_policy="omit")
    off_diagonal = ~torch.eye(70, dtype=torch.bool)
    assert torch.equal(own[off_diagonal], across[off_diagonal])


def test_swapping_x_and_y_transposes() -> None:
    x, y = normal(300, 5), normal(300, 4, 1)
    for estimator in ESTIMATORS:
        assert torch.equal(
            mutual_information(x, y, estimator=estimator),
            mutual_information(y, x, estimator=estimator).t(),
        )


@given(st.integers(2, 400), st.integers(2, 256), st.integers(2, 256), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_bounds(samples: int, x_bins: int, y_bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, x_bins, (3, samples), generator=generator).to(torch.uint8)
    y = torch.randint(0, y_bins, (2, samples), generator=generator).to(torch.uint8)
    y[0] = x[0].clamp(max=y_bins - 1)
    x, y = Discretized(x, x_bins), Discretized(y, y_bins)
    hx, hy, hxy = entropy(x)[:, None], entropy(y)[None], joint_entropy(x, y)
    information = mutual_information(x, y)
    slack = 2e-6
    assert (information >= 0).all()
    assert (information <= torch.minimum(hx, hy) + slack).all()
    assert (hxy <= hx + hy + slack).all()
    assert (hxy >= torch.maximum(hx, hy) - slack).all()
    torch.testing.assert_close(conditional_entropy(x, y), hxy - hy, rtol=0, atol=slack)


def test_chain_rule() -> None:
    """I(X; Y,Z) = I(X;Z) + I(X;Y|Z), with (Y,Z) coded as one variable."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.randint(0, 4, (3, 1, 900), generator=generator).to(torch.uint8)
    x = (x + y) % 4
    both = Discretized(y * 4 + z, 16)
    x, y, z = (Discretized(c, 4) for c in (x, y, z))
    torch.testing.assert_close(
        mutual_information(x, both),
        mutual_information(x, z) + conditional_mutual_information(x, y, z), rtol=0, atol=1e-6,
    )  # fmt: skip


def test_constant_features_have_exactly_nothing() -> None:
    x = normal(999, 4)
    x[:, 1] = 0.1
    y = normal(999, 3, 1)
    y[:, 2] = -7
    labels = torch.randint(0, 9, (999,), generator=torch.Generator().manual_seed(0))
    soft = normal(999, 9, 2).softmax(1)
    assert entropy(x)[1] == 0
    for matrix in (mutual_information(x, y), conditional_mutual_information(x, y, labels),
                   conditional_mutual_information(x, y, y[:, :1])):  # fmt: skip
        assert (matrix[1] == 0).all()
        assert (matrix[:, 2] == 0).all()
    assert mutual_information(x)[1].eq(0).all()
    assert mutual_information(x, labels)[1] == 0
    assert mutual_information(x, torch.zeros(999, dtype=torch.int64)).eq(0).all()
    assert mutual_information(x, probabilities=soft)[1] == 0
    assert conditional_mutual_information(x, labels, labels).eq(0).all()
    for normalized in ("min", "max", "arithmetic", "geometric"):
        assert mutual_information(x, y, normalized=normalized)[1].eq(0).all()


def test_order_of_samples_does_not_matter() -> None:
    x, y = normal(500, 4), normal(500, 3, 1)
    labels = torch.randint(0, 9, (500,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    calls = (
        lambda i, e: entropy(x[i], estimator=e),
        lambda i, e: mutual_information(x[i], y[i], estimator=e),
        lambda i, e: mutual_information(x[i], labels[i], estimator=e),
        lambda i, e: conditional_mutual_information(x[i], y[i], labels[i], estimator=e),
        lambda i, e: conditional_mutual_information(x[i], labels[i], y[i, :1], estimator=e),
    )
    for call in calls:
        for estimator in ESTIMATORS:
            assert torch.equal(call(slice(None), estimator), call(order, estimator))


# Input of every kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(dtype: torch.dtype) -> None:
    wide = normal(400, 12).to(dtype)
    x, y = wide[::2, ::3], wide[::2, 1::4]
    plain = x.contiguous(), y.contiguous()
    for call in (mutual_information, joint_entropy, conditional_entropy):
        result = call(x, y)
        assert result.dtype == torch.float32
        assert result.shape == (4, 3)
        assert torch.equal(result, call(*plain))
        assert torch.equal(result, call(*(p.t().contiguous().t() for p in plain)))
        exact = call(*(p.double() for p in plain), bins=16, range=(-5.0, 5.0))
        torch.testing.assert_close(call(*plain, range=(-5.0, 5.0)), exact, rtol=0, atol=0.02)
    assert torch.equal(entropy(x), entropy(plain[0]))


def test_smallest_shape() -> None:
    x, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([3, 0])
    assert entropy(x).item() == pytest.approx(LN2)
    assert mutual_information(x).item() == pytest.approx(LN2)
    assert mutual_information(x, labels).item() == pytest.approx(LN2)
    assert conditional_mutual_information(x, x, labels).item() == 0
    assert conditional_mutual_information(x, x, torch.tensor([1, 1])).item() == pytest.approx(LN2)


def test_missing_samples_leave_pairs_of_their_own() -> None:
    x, y = normal(600, 4), normal(600, 3, 1)
    x[torch.rand(x.shape) < 0.2] = torch.nan
    y[torch.rand(y.shape) < 0.1] = 9.0
    options = {"bins": 8, "range": (-4.5, 4.5)}
    policies = {"nan_policy": "omit", "outliers": "drop"}
    labels = torch.randint(0, 5, (600,), generator=torch.Generator().manual_seed(0))
    for estimator in ESTIMATORS:
        matrix = mutual_information(x, y, estimator=estimator, **options, **policies)
        given = conditional_mutual_information(
            x, y, labels, estimator=estimator, **options, **policies
        )
        for i in range(4):
            for j in range(3):
                both = x[:, i].isfinite() & (y[:, j] < 9)
                a, b = x[both, i : i + 1], y[both, j : j + 1]
                expected = mutual_information(a, b, estimator=estimator, **options)
                assert torch.equal(matrix[i, j], expected[0, 0])
                expected = conditional_mutual_information(
                    a, b, labels[both], estimator=estimator, **options
                )
                torch.testing.assert_close(given[i, j], expected[0, 0], rtol=0, atol=1e-6)


def test_a_discretized_stands_for_its_features() -> None:
    x, y = normal(300, 4), normal(300, 3, 1)
    x_codes, y_codes = discretize(x, bins=12), discretize(y, bins=12)
    assert torch.equal(entropy(x_codes), entropy(x, bins=12))
    assert torch.equal(mutual_information(x_codes, y_codes), mutual_information(x, y, bins=12))
    z = discretize(x[:, :1], bins=12)
    assert torch.equal(conditional_mutual_information(x_codes, y_codes, z),
                       conditional_mutual_information(x, y, x[:, :1], bins=12))  # fmt: skip
    assert torch.equal(entropy(Discretized(x_codes.codes[:, ::2], 12)),
                       entropy(Discretized(x_codes.codes[:, ::2].contiguous(), 12)))  # fmt: skip


def test_what_is_given_by_feature_holds_for_x() -> None:
    x, y = normal(300, 2).clamp(-3, 3), normal(300, 3, 1)
    low, high = torch.full((2,), -3.0), torch.full((2,), 3.0)
    expected = mutual_information(discretize(x, bins=8, range=(-3.0, 3.0)), discretize(y, bins=8))
    assert torch.equal(mutual_information(x, y, bins=8, range=(low, high)), expected)
    edges = torch.linspace(-3, 3, 9).expand(2, 9)
    assert torch.equal(mutual_information(x, y, bins=edges), expected)


def test_default_is_sixteen_bins() -> None:
    x = normal(100, 2)
    assert torch.equal(mutual_information(x), mutual_information(x, bins=16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_dtype(dtype: torch.dtype) -> None:
    x = normal(200, 3)
    labels = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))
    for call in (mutual_information, joint_entropy, conditional_entropy):
        result = call(x, labels.to(dtype))
        assert result.shape == (3,)
        assert torch.equal(result, call(x, labels))


# torch.compile, torch.export, threads, processes

CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "entropy": lambda x, y, labels: entropy(x, bins=8, estimator="shrink"),
    "entropy, quantile": lambda x, y, labels: entropy(x, bins=8, binning="quantile", base=2.0),
    "joint_entropy": lambda x, y, labels: joint_entropy(x, y, range=(-9.0, 9.0)),
    "conditional_entropy": lambda x, y, labels: conditional_entropy(x, labels),
    "mutual_information": lambda x, y, labels: mutual_information(x, normalized="min"),
    "soft labels": lambda x, y, labels: mutual_information(x, probabilities=y.softmax(1)),
    "conditional_mutual_information": lambda x, y, labels: conditional_mutual_information(
        x, y, labels
    ),
    "predictive_information": lambda x, y, labels: predictive_information(y),
    "discretize": lambda x, y, labels: mutual_information(
        discretize(x, bins=4), discretize(y, bins=5)
    ),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return CALLS[request.param]


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(0, 9, (400,), generator=torch.Generator().manual_seed(0))
    return normal(400, 5), normal(400, 3, 1), labels


def test_compiles(call, inputs) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), call(*inputs))


def test_exports(call, inputs) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
            return call(x, y, labels)

    exported = torch.export.export(Module(), inputs)
    assert torch.equal(exported.module()(*inputs), call(*inputs))


def test_does_not_depend_on_threads(call, threads) -> None:
    labels = torch.randint(0, 9, (5000,), generator=torch.Generator().manual_seed(0))
    inputs = normal(5000, 130), normal(5000, 10, 1), labels
    threads(1)
    alone = call(*inputs)
    threads(4)
    assert torch.equal(alone, call(*inputs))


def test_concurrent_calls(call, inputs) -> None:
    expected, results = call(*inputs), []
    workers = [
        threading.Thread(target=lambda: results.append([call(*inputs) for _ in range(3)]))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(r, expected) for some in results for r in some)


class _InWorkers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return mutual_information(normal(300, 8, index))


def test_forked_workers() -> None:
    mutual_information(normal(3000, 80))  # threads have run before the fork
    loader = DataLoader(
        _InWorkers(), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for index, result in enumerate(loader):
        assert torch.equal(result, mutual_information(normal(300, 8, index)))


# Errors

X = torch.linspace(0, 1, 18).view(9, 2)
LABELS = torch.arange(9)
CODES = codes([[0, 1, 2] * 3], 3)


def _with(value: float) -> Tensor:
    x = X.clone()
    x[4, 1] = value
    return x


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: entropy(_with(torch.nan)), ValueError,
     "entropy: x has NaN in feature 1; pass nan_policy='omit'"),
    (lambda: mutual_information(X, _with(torch.nan)), ValueError,
     "mutual_information: y has NaN in feature 1; pass nan_policy='omit'"),
    (lambda: conditional_mutual_information(X, X, _with(torch.nan)[:, 1:]), ValueError,
     "conditional_mutual_information: z has NaN in feature 0; pass nan_policy='omit'"),
    (lambda: entropy(_with(torch.nan), binning="quantile"), ValueError,
     "entropy: x has NaN in feature 1; pass nan_policy='omit'"),
    (lambda: joint_entropy(_with(torch.inf)), ValueError,
     "joint_entropy: x has infinity in feature 1; pass outliers='drop' or 'clip'"),
    (lambda: conditional_entropy(X, X, range=(0.0, 0.5)), ValueError,
     "conditional_entropy: x must lie in range [0, 0.5], got "),
    (lambda: entropy(X[:1]), ValueError,
     "entropy: x must have at least 2 valid samples in every feature, got 1 in feature 0"),
    (lambda: mutual_information(X[:1]), ValueError,
     "mutual_information: x must have at least 2 valid samples in every feature, got 1"),
    (lambda: entropy(X[:0]), ValueError,
     "entropy: x must have at least 1 sample where range is None, got [0, 2]"),
    (lambda: entropy(torch.full((9, 2), torch.nan), nan_policy="omit"), ValueError,
     "entropy: x must have at least 2 valid samples in every feature, got 0 in feature 0"),
    (lambda: entropy(X[0]), ValueError,
     "entropy: x must have shape [samples, features], got [2]"),
    (lambda: entropy(LABELS[:, None]), TypeError,
     "entropy: x must be float16, bfloat16, float32 or float64, got torch.int64; wrap integer "
     "codes as Discretized(codes, bins)"),
    (lambda: entropy(X + 0j), TypeError,
     "entropy: x must be float16, bfloat16, float32 or float64, got torch.complex64"),
    (lambda: entropy(X.numpy()), TypeError,
     "entropy: x must be a tensor or a Discretized, got ndarray"),
    (lambda: entropy(X, bins=1), ValueError, "entropy: bins must be between 2 and 256, got 1"),
    (lambda: entropy(X, estimator="bayes"), ValueError,
     "entropy: estimator must be one of 'plugin', 'miller_madow', 'grassberger', 'chao_shen', "
     "'shrink', got 'bayes'"),
    (lambda: entropy(X, base=1.0), ValueError,
     "entropy: base must be a finite number above 1, got 1"),
    (lambda: entropy(CODES, bins=3), ValueError,
     "entropy: bins must be None where x is a Discretized, which brings its own bins, got 3"),
    (lambda: mutual_information(X, codes([[0, 1, 2] * 3], 3), bins=4), ValueError,
     "mutual_information: bins must be None where y is a Discretized"),
    (lambda: entropy(codes([[0, 1, 7]], 3)), ValueError,
     "entropy: codes must be below bins = 3 (or 255, no sample), got more in feature 0"),
    (lambda: mutual_information(codes([[0, 1, 7]], 3)), ValueError,
     "mutual_information: codes of x must be below bins = 3 (or 255, no sample), got 7 in "
     "feature 0"),
    (lambda: mutual_information(X, X[:5]), ValueError,
     "mutual_information: y must have as many samples as x, got 5 and 9"),
    (lambda: mutual_information(X, LABELS[:5]), ValueError,
     "mutual_information: y must have as many samples as x, got 5 and 9"),
    (lambda: mutual_information(X, LABELS - 1), ValueError,
     "mutual_information: y must hold labels between 0 and 65535, got -1 in sample 0"),
    (lambda: mutual_information(X, LABELS * 10_000), ValueError,
     "mutual_information: y must hold labels between 0 and 65535, got 70000 in sample 7"),
    (lambda: mutual_information(X, LABELS[:, None]), ValueError,
     "mutual_information: y must have shape [samples] where it holds class labels, got [9, 1]"),
    (lambda: mutual_information(X, X[:, 0]), ValueError,
     "mutual_information: y must have shape [samples, features], got [9]"),
    (lambda: mutual_information(X, "labels"), TypeError,
     "mutual_information: y must be a tensor or a Discretized, got str"),
    (lambda: mutual_information(X, normalized="mean"), ValueError,
     "mutual_information: normalized must be one of 'min', 'max', 'arithmetic', 'geometric', got "
     "'mean'"),
    (lambda: mutual_information(X, X, probabilities=X), ValueError,
     "mutual_information: y must be None where probabilities are given"),
    (lambda: mutual_information(X, probabilities=X.softmax(1), estimator="shrink"), ValueError,
     "mutual_information: estimator must be 'plugin' where probabilities are given, got 'shrink'"),
    (lambda: mutual_information(X, probabilities=X), ValueError,
     "mutual_information: probabilities must be at least 0 and sum to 1 in every sample, got sum "),
    (lambda: mutual_information(X, probabilities=[0.5]), TypeError,
     "mutual_information: probabilities must be a tensor, got list"),
    (lambda: conditional_mutual_information(X, X, X), ValueError,
     "conditional_mutual_information: z must be one feature [samples, 1], got 2 features"),
    (lambda: conditional_mutual_information(X, X, LABELS[:5]), ValueError,
     "conditional_mutual_information: z must have as many samples as x, got 5 and 9"),
    (lambda: conditional_mutual_information(X, X, -LABELS), ValueError,
     "conditional_mutual_information: z must hold labels between 0 and 65535, got -1 in sample 1"),
    (lambda: predictive_information(X[0]), ValueError,
     "predictive_information: logits must have shape [samples, classes], got [2]"),
    (lambda: predictive_information(_with(torch.nan)), ValueError,
     "predictive_information: logits must be finite (or -inf for some classes), got NaN or "
     "infinity in sample 4"),
    (lambda: predictive_information(LABELS[:, None]), TypeError,
     "predictive_information: logits must be float16, bfloat16, float32 or float64, got Long"),
    (lambda: predictive_information("logits"), TypeError,
     "predictive_information: logits must be a tensor, got str"),
]  # fmt: skip


@pytest.mark.parametrize(("call_badly", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(call_badly, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        call_badly()


def test_pairs_without_common_samples_raise() -> None:
    x = torch.tensor([[0.0, torch.nan], [1.0, torch.nan], [torch.nan, 0.0], [torch.nan, 1.0]])
    text = (
        "every pair must share at least 2 valid samples, got fewer for feature 0 of x and feature 1"
    )
    with pytest.raises(ValueError, match=text):
        mutual_information(x, nan_policy="omit")
    with pytest.raises(ValueError, match=text):
        conditional_mutual_information(x, None, torch.arange(4), nan_policy="omit")


def test_arguments_are_left_alone() -> None:
    x = _with(torch.nan)
    before = x.clone()
    mutual_information(x, nan_policy="omit")
    np.testing.assert_array_equal(x, before)
    assert simmim_ext.__all__

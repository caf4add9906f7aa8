"""The information functions: input of every kind, and errors."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from information_cases import ESTIMATORS
from inputs import normal
from torch import Tensor

import simmim_ext
from simmim_ext import (
    Discretized,
    conditional_entropy,
    conditional_mutual_information,
    discretize,
    entropy,
    independence_test,
    joint_entropy,
    mutual_information,
    predictive_information,
)

LN2 = math.log(2)


def codes(rows: Any, bins: int) -> Discretized:
    return Discretized(torch.tensor(rows, dtype=torch.uint8), bins)


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


def test_labels_that_are_true_or_false() -> None:
    x = normal(200, 3)
    labels = x[:, 0] > 0
    for call in (mutual_information, joint_entropy, conditional_entropy):
        assert torch.equal(call(x, labels), call(x, labels.long()))
    assert torch.equal(
        conditional_mutual_information(x, labels, labels),
        conditional_mutual_information(x, labels.long(), labels.long()),
    )


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
    (lambda: mutual_information(X, (-LABELS).to(torch.uint64)), ValueError,
     "mutual_information: y must hold labels between 0 and 65535, got 18446744073709551615 in "
     "sample 1"),
    (lambda: mutual_information(X, (LABELS << 60).to(torch.uint64)), ValueError,
     "mutual_information: y must hold labels between 0 and 65535, got 1152921504606846976 in "
     "sample 1"),
    (lambda: mutual_information(X, LABELS[:, None]), ValueError,
     "mutual_information: y must have shape [samples] where it holds class labels, got [9, 1]"),
    (lambda: mutual_information(X, X[:, 0]), ValueError,
     "mutual_information: y must have shape [samples, features], got [9]; one feature is "
     "y[:, None], and class labels are y.long()"),
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
     "mutual_information: probabilities must be a tensor, got list; give "
     "torch.from_numpy(numpy.asarray(probabilities))"),
    (lambda: conditional_mutual_information(X, X, X), ValueError,
     "conditional_mutual_information: z must be one feature [samples, 1], got 2 features"),
    (lambda: conditional_mutual_information(X, X, LABELS[:5]), ValueError,
     "conditional_mutual_information: z must have as many samples as x, got 5 and 9"),
    (lambda: conditional_mutual_information(X, X, -LABELS), ValueError,
     "conditional_mutual_information: z must hold labels between 0 and 65535, got -1 in sample 1"),
    (lambda: conditional_mutual_information(X, X, (-LABELS).to(torch.uint64)), ValueError,
     "conditional_mutual_information: z must hold labels between 0 and 65535, got "
     "18446744073709551615 in sample 1"),
    (lambda: predictive_information(X[0]), ValueError,
     "predictive_information: logits must have shape [samples, classes], got [2]"),
    (lambda: predictive_information(_with(torch.nan)), ValueError,
     "predictive_information: logits must be finite (or -inf for some classes), got NaN or "
     "infinity in sample 4"),
    (lambda: predictive_information(LABELS[:, None]), TypeError,
     "predictive_information: logits must be float16, bfloat16, float32 or float64, got Long"),
    (lambda: predictive_information("logits"), TypeError,
     "predictive_information: logits must be a tensor, got str"),
    (lambda: entropy(X.to_sparse()), TypeError,
     "entropy: x must be a dense tensor, got torch.sparse_coo"),
    (lambda: entropy(torch.nested.nested_tensor([X, X], layout=torch.jagged)), TypeError,
     "entropy: x must be a dense tensor, got torch.jagged"),
    (lambda: entropy(X, bins=X[0].to_sparse()), TypeError,
     "entropy: bins must be a dense tensor, got torch.sparse_coo"),
    (lambda: entropy(X, range=(X[0], X[1].to_sparse())), TypeError,
     "entropy: range must be a dense tensor, got torch.sparse_coo"),
    (lambda: joint_entropy(X, LABELS.to_sparse()), TypeError,
     "joint_entropy: y must be a dense tensor, got torch.sparse_coo"),
    (lambda: mutual_information(X, probabilities=X.to_sparse()), TypeError,
     "mutual_information: probabilities must be a dense tensor, got torch.sparse_coo"),
    (lambda: conditional_mutual_information(X, X, LABELS.to_sparse()), TypeError,
     "conditional_mutual_information: z must be a dense tensor, got torch.sparse_coo"),
    (lambda: independence_test(X, LABELS.to_sparse()), TypeError,
     "independence_test: y must be a dense tensor, got torch.sparse_coo"),
    (lambda: independence_test(X.to("meta")), ValueError,
     "independence_test: x must have values, and is on the meta device"),
    (lambda: independence_test(X, LABELS.to("meta")), ValueError,
     "independence_test: y must be on x's device cpu, got meta"),
    (lambda: predictive_information(X.to_sparse()), TypeError,
     "predictive_information: logits must be a dense tensor, got torch.sparse_coo"),
    (lambda: entropy(X.to(torch.float8_e5m2)), TypeError,
     "entropy: x must be float16, bfloat16, float32 or float64, got torch.float8_e5m2"),
    (lambda: entropy(X, base="e"), TypeError,
     "entropy: base must be a number or None, got str"),
    (lambda: mutual_information(X, base="e"), TypeError,
     "mutual_information: base must be a number or None, got str"),
    (lambda: mutual_information(X, LABELS, base=[2]), TypeError,
     "mutual_information: base must be a number or None, got list"),
    (lambda: entropy(X, estimator=None), TypeError,
     "entropy: estimator must be a str, got NoneType"),
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


def test_numpys_numbers_serve() -> None:
    x, four, ends = normal(50, 2), np.int64(4), (np.float32(-8), np.float64(8))
    for given, plain in ((four, 4), (np.uint8(4), 4)):
        assert torch.equal(entropy(x, bins=given), entropy(x, bins=plain))
    assert torch.equal(entropy(x, range=ends), entropy(x, range=(-8.0, 8.0)))
    coded = discretize(x, bins=four, range=ends)
    assert type(coded.bins) is type(Discretized(coded.codes, four).bins) is int
    options = {"method": "permutation", "bins": four}
    found = independence_test(x, **options, permutations=np.int32(5), seed=np.int64(1))
    expected = independence_test(x, **options, permutations=5, seed=1)
    assert torch.equal(found.p_value, expected.p_value)
    assert simmim_ext.Histogram(np.int64(2), four, ends).counts.shape == (2, 4)
    for wrong in (np.bool_(True), np.float64(4)):
        with pytest.raises(TypeError, match="entropy: bins must be an int, or a tensor of edges"):
            entropy(x, bins=wrong)


def test_arguments_are_left_alone() -> None:
    x = _with(torch.nan)
    before = x.clone()
    mutual_information(x, nan_policy="omit")
    np.testing.assert_array_equal(x, before)
    assert simmim_ext.__all__


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("y", lambda x, d: mutual_information(x, x.to(d))),
        ("y", lambda x, d: mutual_information(x, x[:, 0].long().to(d))),
        (
            "probabilities",
            lambda x, d: mutual_information(x, probabilities=x.softmax(1).to(d)),
        ),
        ("y", lambda x, d: conditional_mutual_information(x, x.to(d), x[:, 0].long())),
        ("z", lambda x, d: conditional_mutual_information(x, x, x[:, 0].long().to(d))),
    ],
)
def test_arguments_are_on_one_device(argument: str, call: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be on x's device cpu, got meta"):
        call(normal(50, 2).abs(), "meta")


def test_edges_and_ranges_come_to_x() -> None:
    """Wherever they are; on the meta device they have no values, and torch says so."""
    x = normal(50, 2)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        entropy(x, bins=torch.linspace(-6, 6, 5, device="meta"))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda x: entropy(x, range=(x.amin(0).cfloat(), x.amax(0).cfloat())),
            TypeError,
            "entropy: range must be real, got torch.complex64",
        ),
        (lambda x: entropy(x, base=10**400), ValueError, "entropy: base must be less than"),
        (
            lambda x: Discretized(torch.eye(5).to(torch.uint8).to_sparse(), 2),
            TypeError,
            "Discretized: codes must be a dense tensor, got torch.sparse_coo",
        ),
        (
            lambda x: Discretized(torch.zeros(1, 9, dtype=torch.uint8), 4, [0, 1]),  # type: ignore[arg-type]
            TypeError,
            "Discretized: edges must be a tensor or None, got list",
        ),
    ],
)
def test_what_is_no_number_or_tensor(
    call: Callable[..., Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(normal(50, 2))

"""Streaming histograms: any chunking, merging and reducing gives the counts of all at once."""

import math
import re

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from information_cases import ESTIMATORS
from inputs import normal
from torch import Tensor

from simmim_ext import (
    Discretized,
    Histogram,
    JointHistogram,
    discretize,
    entropy,
    joint_entropy,
    mutual_information,
)

RANGE = (-6.0, 6.0)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=8), st.integers(2, 256))
@settings(max_examples=40, deadline=None)
def test_any_chunking_is_one_shot(sizes: list[int], bins: int) -> None:
    sizes.append(2)
    x, y = normal(sum(sizes), 3), normal(sum(sizes), 2, 1)
    one, joint = Histogram(3, bins, RANGE), JointHistogram(3, 2, bins, RANGE)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        one.update(a)
        joint.update(a, b)
    assert one.counts.shape == (3, bins)
    assert joint.counts.shape == (3, 2, bins, bins)
    assert torch.equal(joint.counts.sum(3)[:, 0], one.counts)
    for estimator in ESTIMATORS:
        options = {"bins": bins, "range": RANGE, "estimator": estimator}
        assert torch.equal(one.entropy(estimator=estimator), entropy(x, **options))
        assert torch.equal(joint.entropy(estimator=estimator), joint_entropy(x, y, **options))
        assert torch.equal(
            joint.mutual_information(estimator=estimator), mutual_information(x, y, **options)
        )


def test_missing_samples() -> None:
    x, y = normal(500, 3), normal(500, 2, 1)
    x[torch.rand(x.shape) < 0.2] = torch.nan
    y *= 4
    options = {"nan_policy": "omit", "outliers": "drop"}
    one, joint = Histogram(3, 8, RANGE, **options), JointHistogram(3, 2, 8, RANGE, **options)
    for a, b in zip(x.split(77), y.split(77), strict=True):
        one.update(a)
        joint.update(a, b)
    options |= {"bins": 8, "range": RANGE}
    assert torch.equal(one.entropy(base=2), entropy(x, base=2, **options))
    assert torch.equal(joint.mutual_information(normalized="max", base=2),
                       mutual_information(x, y, normalized="max", base=2, **options))  # fmt: skip


def test_edges_and_ranges_by_feature() -> None:
    x = normal(200, 2).clamp(-3, 3)
    edges = torch.tensor([[-3.0, -1.0, 0.0, 3.0], [-3.0, 0.0, 2.0, 3.0]])
    histogram = Histogram(2, edges)
    low, high = torch.tensor([-3.0, -4.0]), torch.tensor([3.0, 5.0])
    other = Histogram(2, 5, (low, high))
    for batch in x.split(64):
        histogram.update(batch)
        other.update(batch)
    assert torch.equal(histogram.entropy(), entropy(x, bins=edges))
    assert torch.equal(other.entropy(), entropy(x, bins=5, range=(low, high)))


def test_codes() -> None:
    x, y = discretize(normal(90, 3), bins=7), discretize(normal(90, 2, 1), bins=7)
    one, joint = Histogram(3, 7, RANGE), JointHistogram(3, 2, 7, RANGE)
    one.update(Discretized(x.codes[:, :50], 7))
    one.update(Discretized(x.codes[:, 50:], 7))
    assert torch.equal(one.entropy(), entropy(x))
    joint.update(Discretized(x.codes[:, :50], 7), Discretized(y.codes[:, :50], 7))
    joint.update(Discretized(x.codes[:, 50:], 7), Discretized(y.codes[:, 50:], 7))
    assert torch.equal(joint.mutual_information(), mutual_information(x, y))


def test_merge_and_state() -> None:
    x = normal(300, 3)
    parts = []
    for chunk in x.chunk(3):
        part = Histogram(3, 16, RANGE)
        part.update(chunk)
        parts.append(part)
    merged = parts[0].merge_(parts[1]).merge_(parts[2])
    assert merged is parts[0]
    assert torch.equal(merged.entropy(), entropy(x, bins=16, range=RANGE))
    restored = Histogram(3, 16, RANGE)
    state = merged.state_dict()
    restored.load_state_dict(state)
    restored.update(x)
    assert torch.equal(restored.counts, 2 * merged.counts)  # and the state is a copy
    assert torch.equal(state["counts"], merged.counts)


def _reduce(rank: int, file: str, x: Tensor, y: Tensor) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    try:
        one, joint = Histogram(3, 16, RANGE), JointHistogram(3, 2, 16, RANGE)
        mine = slice(0, 150) if rank == 0 else slice(150, None)
        one.update(x[mine])
        joint.update(x[mine], y[mine])
        assert one.all_reduce_() is one
        joint.all_reduce_()
        options = {"bins": 16, "range": RANGE}
        assert torch.equal(one.entropy(), entropy(x, **options))
        assert torch.equal(joint.mutual_information(), mutual_information(x, y, **options))
    finally:
        torch.distributed.destroy_process_group()


def test_all_reduce_in_two_processes(tmp_path) -> None:
    arguments = (str(tmp_path / "store"), normal(400, 3), normal(400, 2, 1))
    torch.multiprocessing.spawn(_reduce, args=arguments, nprocs=2, join=True)


def _updated() -> Histogram:
    histogram = Histogram(2, 4, RANGE)
    histogram.update(normal(9, 2))
    return histogram


BAD = [
    (lambda: Histogram(0, 4, RANGE), ValueError, "Histogram: features must be at least 1, got 0"),
    (lambda: Histogram(2.0, 4, RANGE), TypeError, "Histogram: features must be an int, got float"),
    (lambda: Histogram(2, 4), ValueError, "Histogram: range must be given (or bins as edges)"),
    (lambda: Histogram(2, 4, (1.0, 0.0)), ValueError,
     "Histogram: range must be finite with low <= high in every feature, got (1, 0)"),
    (lambda: JointHistogram(2, 1, 4, (0.0, math.inf)), ValueError,
     "JointHistogram: range must be finite with low <= high in every feature, got (0, inf)"),
    (lambda: Histogram(2, 4, (torch.zeros(3), torch.ones(3))), ValueError,
     "Histogram: range given as tensors must have shape [features] = [2], got [3]"),
    (lambda: Histogram(2, torch.tensor([0.0, 2.0, 1.0])), ValueError, "Histogram: "),
    (lambda: Histogram(2, 1, RANGE), ValueError,
     "Histogram: bins must be between 2 and 256, got 1"),
    (lambda: Histogram(2, 4, RANGE, device="gpu"), ValueError,
     "Histogram: device must be None or a torch device that can be used here, got 'gpu' (Exp"),
    (lambda: Histogram(2, 4, RANGE).update(torch.nested.nested_tensor([torch.ones(2)])), TypeError,
     "Histogram: x must be a dense tensor, got a nested tensor"),
    (lambda: Histogram(2, 4, RANGE).update(normal(9, 3)), ValueError,
     "Histogram: x must have shape [samples, 2], got [9, 3]"),
    (lambda: Histogram(2, 4, RANGE).update(discretize(normal(9, 2), bins=5)), ValueError,
     "Histogram: x must have 2 features of 4 bins, got 2 of 5"),
    (lambda: Histogram(3, 4, RANGE).update(discretize(normal(9, 2), bins=4)), ValueError,
     "Histogram: x must have 3 features of 4 bins, got 2 of 4"),
    (lambda: Histogram(2, 4, (0.0, 1.0)).update(normal(9, 2)), ValueError,
     "Histogram: x must lie in range [0, 1], got "),
    (lambda: Histogram(2, 4, RANGE).entropy(), ValueError,
     "Histogram: x must have at least 2 valid samples in every feature, got 0 in feature 0"),
    (lambda: Histogram(2, 4, RANGE).merge_(Histogram(2, 5, RANGE)), ValueError,
     "Histogram: other must have int64 counts of shape [2, 4], got torch.int64 [2, 5]"),
    (lambda: Histogram(2, 4, RANGE).merge_(Histogram(2, 4, (0.0, 1.0))), ValueError,
     "Histogram: other must have the same bins, got other edges"),
    (lambda: Histogram(2, 4, RANGE).merge_(JointHistogram(2, 2, 4, RANGE)), TypeError,
     "Histogram: other must be a Histogram, got JointHistogram"),
    (lambda: _updated().load_state_dict({"counts": torch.zeros(2, 4)}), ValueError,
     "Histogram: state must be a dict with the tensor 'edges'"),
    (lambda: JointHistogram(2, 2, 4, (torch.zeros(2), torch.ones(2))), ValueError,
     "JointHistogram: range must be two floats, or bins edges [bins + 1], for x and y alike"),
    (lambda: JointHistogram(2, 2, 4, RANGE).update(normal(9, 2), normal(9, 3)), ValueError,
     "JointHistogram: y must have shape [samples, 2], got [9, 3]"),
    (lambda: JointHistogram(2, 2, 4, RANGE).update(normal(9, 2), normal(8, 2)), ValueError,
     "JointHistogram: y must have as many samples as x, got 8 and 9"),
    (lambda: JointHistogram(2, 2, 4, RANGE).update(
        discretize(normal(9, 2), bins=5), normal(9, 2)), ValueError,
     "JointHistogram: x must have 2 features of 4 bins, got 2 of 5"),
    (lambda: JointHistogram(2, 2, 4, RANGE).mutual_information(), ValueError,
     "JointHistogram: every pair must share at least 2 valid samples, got fewer for feature 0 of "
     "x and feature 0 of y"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        call()


def test_made_and_loaded_in_inference_mode() -> None:
    """As evaluation loops do, whose histograms are added up later."""
    x = normal(50, 2)
    with torch.inference_mode():
        first, loaded = Histogram(2, 8, RANGE), Histogram(2, 8, RANGE)
        first.update(x)
        loaded.load_state_dict(first.state_dict())
    loaded.merge_(first)
    loaded.update(x)
    assert torch.equal(loaded.counts, 3 * first.counts)


@pytest.mark.parametrize("given", ["range", "edges"])
def test_tensors_of_the_caller_are_not_the_bins(given: str) -> None:
    x = normal(100, 1)
    bounds = [torch.full((1,), -6.0), torch.full((1,), 6.0)]
    edges = torch.linspace(-6, 6, 5, dtype=torch.float64)
    one = Histogram(1, 4, tuple(bounds)) if given == "range" else Histogram(1, edges)
    before = one.state_dict()["edges"].clone()
    for tensor in (*bounds, edges, one.state_dict()["edges"]):
        tensor.add_(3)
    one.update(x)
    fresh = Histogram(1, 4, RANGE)
    fresh.update(x)
    assert torch.equal(one.counts, fresh.counts)
    assert torch.equal(one.state_dict()["edges"], before)

"""Joint counts by carry-save addition: what small inputs do not reach."""

import math
import re

import pytest
import torch
from information_reference import joint_histogram as reference
from torch import Tensor

from simmim_ext import Discretized, joint_entropy, mutual_information
from simmim_ext.ops import entropy as entropy_ops
from simmim_ext.ops.joint import joint_histogram, joint_information


def codes(features: int, samples: int, bins: int, missing: float = 0.0) -> Tensor:
    """Half the samples of feature 0 in bin 0, as after a ReLU; the rest uniform."""
    generator = torch.Generator().manual_seed(features + samples + bins)
    result = torch.randint(0, bins, (features, samples), generator=generator, dtype=torch.uint8)
    result[0, ::2] = 0
    result[torch.rand(result.shape, generator=generator) < missing] = 255
    return result


@pytest.mark.parametrize("missing", [0.0, 0.1], ids=["whole", "missing"])
@pytest.mark.parametrize(("x_bins", "y_bins"), [(2, 8), (8, 7), (16, 16), (5, 17), (32, 32)])
def test_counts_of_ragged_groups(x_bins, y_bins, missing, cpu_capability) -> None:
    x, y = codes(3, 1003, x_bins, missing), codes(41, 1003, y_bins, missing)
    assert torch.equal(joint_histogram(x, y, x_bins, y_bins, ""), reference(x, y, x_bins, y_bins))


@pytest.mark.parametrize("samples", [16384, 16385, 70001])  # one chunk, two, and many
def test_counts_of_several_chunks(samples, cpu_capability) -> None:
    x, y = codes(2, samples, 4, 0.01), codes(9, samples, 16, 0.01)
    assert torch.equal(joint_histogram(x, y, 4, 16, ""), reference(x, y, 4, 16))


def test_full_run() -> None:
    """Every sample in one cell: the largest count a chunk can give."""
    x, y = torch.ones(1, 50000, dtype=torch.uint8), torch.ones(8, 50000, dtype=torch.uint8)
    assert torch.equal(joint_histogram(x, y, 2, 2, ""), reference(x, y, 2, 2))


@pytest.mark.parametrize("bins", [8, 32])
def test_information_does_not_depend_on_the_way_of_counting(bins, cpu_capability) -> None:
    """Carry-save addition takes many features, plain counters few: the same bits."""
    x = codes(70, 2000, bins, 0.05)
    for quantity in (joint_entropy, mutual_information):
        within = quantity(Discretized(x, bins))
        for first in range(0, 70, 7):
            few = Discretized(x[first : first + 7], bins)
            between = quantity(Discretized(x, bins), few)
            off_diagonal = torch.arange(70)[:, None] != torch.arange(first, first + 7)
            assert torch.equal(within[:, first : first + 7][off_diagonal], between[off_diagonal])


@pytest.mark.parametrize("samples", [65535, 65536, 150_000])
def test_terms_of_counts_too_large_for_a_table(samples, cpu_capability) -> None:
    x, y = torch.zeros(1, samples, dtype=torch.uint8), codes(9, samples, 4)
    x[0, :5] = 1
    y[0], y[1, 7:] = 0, 3
    many = joint_entropy(Discretized(x, 2), Discretized(y, 4))
    few = [joint_entropy(Discretized(x, 2), Discretized(own[None], 4)) for own in y]
    assert torch.equal(many, torch.cat(few, 1))
    p = reference(x, y, 2, 4).double() / samples
    torch.testing.assert_close(many, -torch.xlogy(p, p).sum((2, 3)).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_counts_where_one_bin_is_fullest(share, cpu_capability) -> None:
    """After a ReLU: the counts of the fullest bin follow from the others, unless samples miss."""
    x, y = codes(6, 1003, 8), codes(41, 1003, 8, 0.1)
    x[:, torch.rand(1003, generator=torch.Generator().manual_seed(0)) < share] = 0
    x[5, 7] = 255
    assert torch.equal(joint_histogram(x, y, 8, 8, ""), reference(x, y, 8, 8))


@pytest.mark.parametrize("features", [7, 16])
def test_no_samples_count_nowhere(features) -> None:
    torch.full((1 << 16,), 7)  # memory that is not 0, to be had again
    empty = torch.empty(features, 0, dtype=torch.uint8)
    assert not joint_histogram(empty, empty, 8, 8).any()
    labels = torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match="x must have at least 2 valid samples"):
        mutual_information(torch.empty(0, 3), labels, range=(0.0, 1.0))
    none = Discretized(torch.empty(0, 0, dtype=torch.uint8), 4)
    assert mutual_information(none, labels).shape == (0,)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (torch.ones(1, 1, 2, 300).long(), "counts must have between 1 and 256 bins, got [1, 1, 2"),
        (torch.ones(1, 1, 0, 2).long(), "counts must have between 1 and 256 bins, got [1, 1, 0"),
        (torch.tensor([[[[-(10**13), 10**13], [5, 5]]]]), "counts must not be negative, got -1000"),
    ],
)
def test_counts_that_are_none(counts, text) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        joint_information(counts, "mutual_information")
    if counts.shape[-1] == 2 and counts.shape[-2]:
        with pytest.raises(ValueError, match=re.escape(text)):
            entropy_ops.entropy(counts)
    with pytest.raises(ValueError, match=re.escape("with bins >= 1, got [3, 0]")):
        entropy_ops.entropy(torch.zeros(3, 0).long())


def test_counts_that_just_add_up() -> None:
    """To 2^63 - 1."""
    counts = torch.tensor([[2**62, 2**62 - 1]])
    for estimator in ("plugin", "miller_madow", "grassberger", "chao_shen", "shrink"):
        result = entropy_ops.entropy(counts, estimator)
        assert result.item() == pytest.approx(math.log(2), abs=1e-7)
        result = joint_information(counts[None, None], "joint_entropy", estimator)
        assert result.item() == pytest.approx(math.log(2), abs=1e-7)

"""Input beyond what 32 bits count and what a cache or a scratch holds."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from simmim_ext import Discretized, Histogram, entropy
from simmim_ext.nn.choice import choose
from simmim_ext.nn.pattern import Pattern
from simmim_ext.ops._library import cpu_capability
from simmim_ext.ops.sparse_linear import pack_sparse_weight

MANY = 2**25  # samples of which 65 features are more than 2^31 elements


def windows(base: Tensor, features: int) -> Tensor:
    """x[i, f] = base[i + f], without the memory that it would take."""
    return base.as_strided((len(base) - features + 1, features), (1, 1))


@pytest.mark.parametrize("given", [True, False], ids=["range", "no range"])
def test_more_elements_than_2_to_the_31(given: bool) -> None:
    base = torch.rand(MANY + 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    options = {"bins": 16, "range": (0.0, 1.0) if given else None}
    x = windows(base, 65)
    assert x.numel() > 2**31
    result = entropy(x, **options)
    for feature in (0, 31, 64):
        alone = base[feature : feature + MANY, None]
        assert torch.equal(result[feature], entropy(alone, **options)[0])


def test_more_codes_than_2_to_the_31() -> None:
    base = torch.randint(0, 9, (MANY + 64,), dtype=torch.uint8)
    result = entropy(Discretized(windows(base, 65).t(), 9))
    expected = base[64:].bincount().double() / MANY
    assert result[64].item() == pytest.approx(-(expected * expected.log()).sum().item(), abs=1e-6)


@pytest.mark.slow
def test_more_samples_than_2_to_the_31() -> None:
    x = torch.linspace(0, 1, 32).expand(2**31 + 7, 32)
    histogram = Histogram(32, 4, (0.0, 1.0))
    histogram.update(x)
    assert histogram.counts.max(1).values.tolist() == [2**31 + 7] * 32
    assert histogram.counts.sum() == x.numel()
    assert histogram.entropy().eq(0).all()


@pytest.mark.parametrize("samples", [2, 3, 40])
@pytest.mark.parametrize("bins", [2, 16, 256])
def test_a_hundred_thousand_features(samples: int, bins: int) -> None:
    x = torch.rand(samples, 100_000, generator=torch.Generator().manual_seed(0))
    for options in ({"range": (0.0, 1.0)}, {}):
        result = entropy(x, bins=bins, **options)
        for feature in (0, 4096, 65_535, 99_999):
            assert torch.equal(
                result[feature], entropy(x[:, feature, None], bins=bins, **options)[0]
            )


MEASURE = """
import resource, sys, torch, simmim_ext
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
wide, narrow = torch.rand(40, 100_000), torch.rand(300_000, 100)
normal = torch.randn(100_000, 256)
codes = simmim_ext.discretize(torch.rand(20_000, 512), bins=16)
torch.set_num_threads(1)
calls = {
    "wide": lambda: simmim_ext.entropy(wide, bins=256, range=(0.0, 1.0)),
    "wide, no range": lambda: simmim_ext.entropy(wide, bins=256),
    "narrow": lambda: simmim_ext.entropy(narrow, bins=256),
    "quantiles": lambda: simmim_ext.entropy(normal, bins=256, binning="quantile"),
    "pairs": lambda: simmim_ext.mutual_information(codes),
}
call = calls[sys.argv[1]]
simmim_ext.mutual_information(torch.rand(9, 9))
before = peak()
torch.set_num_threads(int(sys.argv[2]))
result = call()
print(peak() - before - result.nbytes)
"""


@pytest.mark.parametrize("call", ["wide", "wide, no range", "narrow", "quantiles", "pairs"])
def test_scratch_of_16_threads_stays_within_64_mib(call: str) -> None:
    command = [sys.executable, "-c", MEASURE, call, "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 20


# Calls with tensors that have no element, whatever their sizes, and a GiB of memory.
EMPTY = """
import resource, sys, torch, simmim_ext
from simmim_ext.ops import compressed_linear as ops
n, none, bits = 2**45, torch.empty(0), torch.empty(0).byte()
edges = torch.linspace(0, 1, 17)
calls = {
    "discretize": lambda: simmim_ext.discretize(torch.empty(0, n), bins=edges).codes,
    "discretize, no features": lambda: simmim_ext.discretize(torch.empty(n, 0), bins=edges).codes,
    "entropy": lambda: simmim_ext.entropy(torch.empty(0, n), bins=edges),
    "decompress_weight": lambda: ops.decompress_weight(bits, none, n, 0),
    "compressed_linear": lambda: ops.compressed_linear(
        none.view(0, 0), bits, none, None, None, n, 0
    ),
    "its gradient": lambda: torch.ops.simmim_ext.compressed_linear_input_grad(
        torch.empty(0, n), bits, none, None, n, 0
    ),
}
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    print(*calls[sys.argv[1]]().shape)
except RuntimeError as error:
    print("no memory" if "memory" in str(error) else error)
"""


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("discretize", "no memory"),  # for the edges of each feature
        ("discretize, no features", f"0 {2**45}"),
        ("entropy", "no memory"),
        ("decompress_weight", f"{2**45} 0"),
        ("compressed_linear", f"0 {2**45}"),
        ("its gradient", "0 0"),
    ],
)
def test_sizes_without_an_element_take_no_time(call: str, result: str) -> None:
    command = [sys.executable, "-c", EMPTY, call]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == result + "\n"


@pytest.mark.parametrize("layout", ["element", "gather", "block", "window", "planes", "pair"])
@pytest.mark.parametrize("shape", [(2**31 + 5, 0), (0, 2**31 + 5), (2**40, 0)])
def test_weights_of_more_rows_or_columns_than_32_bits_number(
    layout: str, shape: tuple[int, int]
) -> None:
    text = (
        r"^pack_sparse_weight: weight must have at most 2\^30 rows and columns, got \[\d+, \d+\];"
    )
    with pytest.raises(ValueError, match=text):
        pack_sparse_weight(torch.empty(shape), torch.empty(shape, dtype=torch.bool), layout)


@pytest.mark.parametrize("shape", [(2**30 + 1, 4), (4, 2**31)])
def test_layers_of_so_many_rows_or_columns_are_dense(shape: tuple[int, int]) -> None:
    some = torch.arange(3)
    pattern = Pattern("element", 1e-3, some, some)
    choice = choose(pattern, shape, cpu_capability(), torch.float32)
    assert choice.kernels_text() == "dense"
    assert choice.reason == "more than 2^30 inputs or outputs"
    assert choose(pattern, (2**30, 4), cpu_capability(), torch.float32).kernels_text() != "dense"

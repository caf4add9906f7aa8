"""The information functions under torch.compile and torch.export, in threads and in processes."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch
from inputs import normal
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simmim_ext import (
    conditional_entropy,
    conditional_mutual_information,
    discretize,
    entropy,
    joint_entropy,
    mutual_information,
    predictive_information,
)

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


def test_interrupt() -> None:
    """Ctrl-C ends a call that would take many seconds, with nothing half done."""
    x = normal(8192, 4096)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may ignore it
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            mutual_information(x)
        assert time.monotonic() - begin < 20
    finally:
        signal.signal(signal.SIGINT, before)
    assert mutual_information(x[:, :4]).isfinite().all()

"""Fixtures that every test file shares."""

import os

# Small work on several threads waits at barriers, for minutes where another process holds a core.
# Tests that are about threads ask for them; subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import recipes
import torch

from simmim_ext import _build  # noqa: F401  (built, or nothing below can work)
from simmim_ext.ops import _library

# Files that take minutes: first, for where files are shared out over cores the last one to end
# should be a short one.
LONGEST = ("test_simt.py", "test_cuda_compile.py", "test_architectures.py", "test_real_models.py")

CAPABILITIES = ("portable", "avx2", "avx512", "avx512_bf16", "amx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cuda" and _library._C.build_info()["cuda"] is None:
        pytest.skip("built without CUDA")
    return str(request.param)


@pytest.fixture(params=CAPABILITIES)
def cpu_capability(request: pytest.FixtureRequest):
    """Runs the test once under each capability that this machine offers."""
    best = _library._C.best_cpu_capability()
    if CAPABILITIES.index(request.param) > CAPABILITIES.index(best):
        pytest.skip(f"this CPU offers at most {best}")
    before = _library._C.cpu_capability()
    _library._C.set_cpu_capability(request.param)
    yield request.param
    _library._C.set_cpu_capability(before)


@pytest.fixture(autouse=True)
def no_tuned_speeds(tmp_path_factory, monkeypatch):
    """No test chooses kernels by what `simmim tune` left on this machine."""
    folder = tmp_path_factory.getbasetemp() / "no_cache"
    monkeypatch.setattr("simmim_ext.nn.tuned.cache_folder", lambda: folder)


@pytest.fixture
def threads():
    """Sets torch's thread count for one test; restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """The command line in this process: (exit code, standard output, standard error)."""
    from simmim_ext.cli import main

    capsys.readouterr()

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with code, weights and the recipe small.toml."""
    yield from recipes.project(tmp_path, monkeypatch)

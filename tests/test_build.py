"""What was built, how it is chosen, and what import says where it does not fit."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from simmim_ext import _build, _version
from simmim_ext.ops import _library

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


def test_built_against_this_torch() -> None:
    info = _library._C.build_info()
    assert info["torch"] == _build.TORCH
    assert torch.__version__.split(".")[:2] == _build.TORCH.split(".")[:2]


@pytest.mark.skipif(os.environ.get("SIMMIM_CUDA") != "1", reason="CUDA was not asked for")
def test_cuda_kernels_are_linked_in() -> None:
    assert _library._C.build_info()["cuda"]
    registered = torch._C._dispatch_dump("simmim_ext::histogram")
    assert re.search(r"^CUDA: .*histogram", registered, re.MULTILINE), registered
    assert b"histogram_kernel" in Path(_library._C.__file__).read_bytes()


def test_import_under_another_torch_says_how_to_rebuild() -> None:
    done = python("import torch; torch.__version__ = '1.99.0'; import simmim_ext.ops._library")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: simmim_ext was built against torch {_build.TORCH} and does not fit torch "
        "1.99.0: rebuild it from its source with "
        "`pip install --no-build-isolation --force-reinstall --no-deps .`"
    )


def test_capability_is_forced_by_the_environment() -> None:
    code = "from simmim_ext.ops._library import _C; print(_C.cpu_capability())"
    assert python(code, SIMMIM_CPU_CAPABILITY="portable").stdout == "portable\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sse9", "must be 'portable', 'avx2', 'avx512', 'avx512_bf16' or 'amx', got"),
        ("amx", "this CPU offers at most"),
    ],
)
def test_unusable_capability_fails_at_import(name: str, text: str) -> None:
    if name == _library._C.best_cpu_capability():
        pytest.skip("this CPU has it")
    done = python("import simmim_ext.ops._library", SIMMIM_CPU_CAPABILITY=name)
    assert done.returncode == 1
    assert f"SIMMIM_CPU_CAPABILITY: {text}" in done.stderr.strip().splitlines()[-1]


def test_asking_for_cuda_where_it_cannot_be_built_fails_with_the_reason() -> None:
    reason = "no nvcc was found" if torch.version.cuda else "was built without CUDA"
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "SIMMIM_CUDA": "1", "PATH": "/nowhere", "CUDA_HOME": "/nowhere"},
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("simmim_ext: SIMMIM_CUDA=1 was asked for, but ")
    )
    assert reason in done.stderr


def test_import_needs_torch_and_numpy_alone() -> None:
    code = """
import sys
allowed = {"torch_pruning", "rich", "safetensors", "matplotlib", "jinja2", "sklearn", "scipy"}
for name in allowed: sys.modules[name] = None  # importing them now fails
import torch, simmim_ext, simmim_ext.nn
simmim_ext.entropy(torch.rand(9, 2))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_kernels_know_no_torch() -> None:
    for path in (ROOT / "csrc/kernels").iterdir():
        for line in path.read_text().splitlines():
            assert not re.match(r'#include\s*[<"](torch|ATen|c10|pybind11|Python\.h)', line), path


def test_version_stands_in_one_place() -> None:
    text = _version.__version__.replace(".", r"\.")
    for name in ("pyproject.toml", "setup.py"):
        assert not re.search(rf"(?<![\d.]){text}(?![\d.])", (ROOT / name).read_text())


@pytest.mark.slow
def test_sdist_and_wheel_install(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "-q", "build"], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"simmim_ext/py.typed", "simmim_ext/page.html"} <= set(names)
    assert any(re.match(r"simmim_ext/_C\..*\.so$", name) for name in names)
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "-q", "--no-deps", "-t", str(target), str(wheel)], check=True)
    code = "import torch, simmim_ext; print(simmim_ext.entropy(torch.rand(99, 2)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}
    )
    assert done.returncode == 0

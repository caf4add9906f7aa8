"""AMX's kernels on CPUs without it: tests/amx/amx.h stands for its instructions."""

import shutil
from pathlib import Path

import pytest
from emulated import KERNELS, TESTS, build_extension, compiled, copy_sources, run, run_tests

from simmim_ext.ops import _library

AMX = TESTS / "amx"
FIXTURE = "cpu_capability)"  # as the last argument of a test
KERNEL = "sparse_linear_tile_cpu.cpp"
BEFORE = ("-include", str(AMX / "amx.h"))

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(
        _library._C.best_cpu_capability() not in ("avx512_bf16", "amx"),
        reason="the rest of AMX's kernels needs AVX-512 with BF16",
    ),
]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The program and all it takes but the kernel, with AMX emulated."""
    folder = tmp_path_factory.mktemp("amx")
    sources = [AMX / "tile_linear.cpp", KERNELS / "cpu_capability.cpp"]
    sources += KERNELS.glob("sparse_linear_pack*_cpu.cpp")
    made = [folder / f"{source.stem}.o" for source in sources]
    for source, out in zip(sources, made, strict=True):
        compiled(*BEFORE, "-c", str(source), "-o", str(out))
    return [str(path) for path in made]


def build(folder: Path, objects: list[str], kernels: Path = KERNELS) -> Path:
    program = folder / "tile_linear"
    compiled(*BEFORE, str(kernels / KERNEL), *objects, "-o", str(program))
    return program


def test_emulated_kernel_agrees_with_reference(tmp_path: Path, objects: list[str]) -> None:
    done = run(build(tmp_path, objects))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "bug", "sign"),
    [
        ("_tile_dpbf16ps(3, 5, 7)", "_tile_dpbf16ps(3, 4, 7)", ": wrong"),
        ("_tile_loadd(5, x + x_stride", "_tile_loadd(5, x + 2 * x_stride", "heap-buffer-overflow"),
        ("_tile_loadconfig(&config)", "config.palette = 0", "no such tile"),
    ],
)
def test_planted_bug_is_caught(
    tmp_path: Path, objects: list[str], line: str, bug: str, sign: str
) -> None:
    copied = shutil.copytree(KERNELS, tmp_path / "csrc" / "kernels")
    products = copied / "tile_products.h"
    assert line in products.read_text()
    products.write_text(products.read_text().replace(line, bug))
    done = run(build(tmp_path, objects, copied))
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr


@pytest.mark.slow
def test_operators_agree_with_references(tmp_path: Path) -> None:
    """Every test that runs under each CPU capability, under this one."""
    copy_sources(tmp_path)
    build_extension(tmp_path, *BEFORE, "-Wno-psabi")
    files = [path for path in (tmp_path / "tests").glob("test_*.py") if FIXTURE in path.read_text()]
    last = run_tests(tmp_path, *map(str, files), "-k", "amx and not test_amx")
    assert "passed" in last
    assert "skipped" not in last

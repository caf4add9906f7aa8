"""The CUDA kernels, emulated on the CPU: tests/simt says how, and what that can show."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SIMT = Path(__file__).parent / "simt"
KERNELS = SIMT.parent.parent / "csrc" / "kernels"
FAMILIES = sorted(path.name.removesuffix("_cuda.cu") for path in KERNELS.glob("*_cuda.cu"))
SEEDS = (0, 1, 2)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def build(folder: Path, program: str, *kernels: Path) -> Path:
    """Compiles tests/simt/<program>.cpp with the emulation and AddressSanitizer."""
    out = folder / program
    command = ["g++", "-std=c++17", "-O1", "-g", "-fsanitize=address", "-Wall", "-Wextra"]
    command += ["-Wno-unknown-pragmas", "-Wno-psabi", "-I", str(SIMT), "-x", "c++"]
    sources = [SIMT / f"{program}.cpp", SIMT / "simt.cpp", *kernels]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return out


def run(program: Path, *arguments: str, seed: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIMT_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_emulated_kernel_agrees_with_cpu(family: str, tmp_path: Path) -> None:
    kernels = [KERNELS / f"{family}_cuda.cu", KERNELS / f"{family}_cpu.cpp"]
    program = build(tmp_path, family, *kernels, KERNELS / "cpu_capability.cpp")
    for seed in SEEDS:
        done = run(program, seed=seed)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("simt"), "planted")


def test_sound_kernel_passes(planted: Path) -> None:
    for seed in SEEDS:
        assert run(planted, "none", seed=seed).stdout == "0 wrong\n"


@pytest.mark.parametrize(
    ("bug", "sign"),
    [
        ("missing barrier", "wrong"),
        ("uninitialised", "96 wrong"),
        ("out of bounds", "heap-buffer-overflow"),
        ("beyond shared memory", "use-after-poison"),
        ("divergent barrier", "a barrier that not every thread of the block or mask reaches"),
    ],
)
def test_planted_bug_is_caught(planted: Path, bug: str, sign: str) -> None:
    done = run(planted, bug)
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr

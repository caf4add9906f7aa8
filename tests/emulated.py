"""Builds for instructions that this machine lacks: CUDA's (tests/simt) and AMX (tests/amx)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
KERNELS = TESTS.parent / "csrc" / "kernels"
COMPILE = [
    *("g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"),
    *("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment"),
]


def compiled(*arguments: str) -> None:
    """Compiles with AddressSanitizer, and without a warning."""
    done = subprocess.run([*COMPILE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


def run(program: Path, *arguments: str, seed: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIMT_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def copy_sources(folder: Path) -> None:
    """What the extension is built and tested from."""
    for name in ("csrc", "simmim_ext", "tests"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(TESTS.parent / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TESTS.parent / name, folder)


def build_extension(folder: Path, *flags: str) -> None:
    """Builds what lies in `folder`, in place and without CUDA, with these flags of the compiler."""
    environment = {**os.environ, "SIMMIM_CUDA": "0", "CFLAGS": " ".join(flags)}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def run_tests(folder: Path, *arguments: str, **environment: str) -> str:
    """Runs pytest on the extension that was built there; returns its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout.strip().splitlines()[-1]

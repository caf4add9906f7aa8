"""The CUDA kernels, emulated on the CPU: tests/simt says how, and what that can show."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulated import KERNELS, TESTS, build_extension, compiled, copy_sources, run, run_tests

SIMT = TESTS / "simt"
PROGRAMS = sorted({path.stem for path in SIMT.glob("*.cpp")} - {"simt", "planted"})
SEEDS = (0, 1, 2)
INCLUDE = ("-I", str(SIMT))

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kernels, the CUDA ones compiled as C++ against the emulation, with AddressSanitizer."""
    folder = tmp_path_factory.mktemp("simt")
    sources = [*KERNELS.glob("*.cpp"), *KERNELS.glob("*.cu"), SIMT / "simt.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    made = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, out in zip(sources, objects, strict=True):
            command = (*INCLUDE, "-x", "c++", "-c", str(source), "-o", str(out))
            made.append(pool.submit(compiled, *command))
    for one in made:
        one.result()
    archive = folder / "kernels.a"
    subprocess.run(["ar", "rcs", str(archive), *map(str, objects)], check=True)
    return archive


def build(library: Path, program: str) -> Path:
    """Links tests/simt/<program>.cpp with the kernels."""
    out = library.parent / program
    compiled(*INCLUDE, str(SIMT / f"{program}.cpp"), str(library), "-o", str(out))
    return out


def test_every_cuda_kernel_has_a_program() -> None:
    kernels = {path.name.removesuffix("_cuda.cu") for path in KERNELS.glob("*_cuda.cu")}
    # By joint, by soft_label, and by the programs of the products.
    launched = {"joint_planes", "row_pack", "soft_label_pack", "tile_pack"}
    assert kernels - launched == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_emulated_kernel_agrees_with_reference(program: str, library: Path) -> None:
    built = build(library, program)
    for seed in SEEDS:
        done = run(built, seed=seed)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def planted(library: Path) -> Path:
    return build(library, "planted")


@pytest.mark.parametrize("kernel", ["none", "rows"])
def test_sound_kernel_passes(planted: Path, kernel: str) -> None:
    for seed in SEEDS:
        assert run(planted, kernel, seed=seed).stdout == "0 wrong\n"


@pytest.mark.parametrize(
    ("bug", "sign"),
    [
        ("missing barrier", "wrong"),
        ("missing warp barrier", "wrong"),
        ("uninitialised", "96 wrong"),
        ("out of bounds", "heap-buffer-overflow"),
        ("beyond shared memory", "use-after-poison"),
        ("early without waiting", "a kernel that begins early and does not wait"),
        ("divergent barrier", "a barrier that not every thread of the block or mask reaches"),
    ],
)
def test_planted_bug_is_caught(planted: Path, bug: str, sign: str) -> None:
    done = run(planted, bug)
    assert done.returncode != 0
    assert sign in done.stdout + done.stderr


@pytest.mark.slow
def test_emulated_operators_agree_with_references(tmp_path: Path) -> None:
    """Every operator with a CUDA kernel, its checks, allocation and launches included.

    The whole extension is built with its CUDA code emulated, serving the CPU's tensors.
    """
    copy_sources(tmp_path)
    for kernel in (tmp_path / "csrc/kernels").glob("*.cu"):
        kernel.with_name(f"{kernel.stem}_emulated.cpp").write_text(f'#include "{kernel.name}"\n')
    shutil.copy(SIMT / "simt.cpp", tmp_path / "csrc")
    macros = ["WITH_CUDA", "EMULATED_CUDA", """CUDA_VERSION='"emulated"'"""]
    macros.append("""CUDA_ARCHITECTURES='"none"'""")
    flags = [f"-DSIMMIM_{macro}" for macro in macros]
    build_extension(tmp_path, *flags, f"-I{tmp_path / 'tests/simt'}", "-Wno-unknown-pragmas")
    chosen = ("-k", "test_agrees_with_reference or test_bad_input or test_cuda_linear")
    # What stands for cuBLAS is the CPU's product, which on AMX lets NaN into other rows.
    run_tests(
        *(tmp_path, "tests/test_ops.py", "tests/test_cuda_linear.py", *chosen),
        ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16",
    )

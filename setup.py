"""Builds simmim_ext._C: the CPU kernels everywhere, the CUDA kernels as SIMMIM_CUDA says.

SIMMIM_CUDA=1 builds them or fails, =0 leaves them out; unset, they are built where torch was built
with CUDA and an nvcc of the same major version is found.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def find_nvcc() -> tuple[str, str] | None:
    """(toolkit folder, version), asked of nvcc itself: the one on PATH may be a shim."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None:
        return None
    run = lambda *args: subprocess.run([nvcc, *args], capture_output=True, text=True)  # noqa: E731
    dry = run("--dryrun", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ (?:_HERE_|TOP)=(.*?)(?:/bin(?:/\.\.)?)?$", dry.stderr, re.MULTILINE)
    version = re.search(r"release (\d+\.\d+)", run("--version").stdout)
    return (str(Path(top[1]).resolve()), version[1]) if top and version else None


nvcc = find_nvcc()
if nvcc:
    os.environ["CUDA_HOME"] = nvcc[0]  # read when torch.utils.cpp_extension is imported

import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def choose_cuda() -> str | None:
    """Why the CUDA kernels are not built; None: they are."""
    built_with = torch.version.cuda
    if os.environ.get("SIMMIM_CUDA") == "0":
        return "SIMMIM_CUDA=0"
    if built_with is None:
        return f"torch {torch.__version__} was built without CUDA"
    if nvcc is None:
        return "no nvcc was found: put it on PATH or set CUDA_HOME"
    if nvcc[1].split(".")[0] != built_with.split(".")[0]:
        return f"nvcc is of CUDA {nvcc[1]}, torch of CUDA {built_with}"
    return None


without_cuda = choose_cuda()
if os.environ.get("SIMMIM_CUDA") == "1" and without_cuda:
    sys.exit(f"simmim_ext: SIMMIM_CUDA=1 was asked for, but {without_cuda}")
kernels = f"CPU kernels only ({without_cuda})" if without_cuda else "CPU and CUDA kernels"
print(f"simmim_ext: {kernels}")

sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
macros = [
    ("SIMMIM_TORCH_VERSION", f'"{torch.__version__}"'),
    ("AT_PER_OPERATOR_HEADERS", None),  # torch's headers of all operators take most of a build
]
flags = {"cxx": ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"]}
if torch.backends.openmp.is_available():
    # The compiler's alone: linked with another OpenMP, there would be two pools of threads.
    flags["cxx"].append("-fopenmp")
if without_cuda is None:
    sources += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cu"))
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    macros += [
        ("SIMMIM_WITH_CUDA", None),
        ("SIMMIM_CUDA_VERSION", f'"{nvcc[1]}"'),
        ("SIMMIM_CUDA_ARCHITECTURES", f'"{architectures}"'),
    ]
    flags["nvcc"] = ["-O3"]
extension = CppExtension if without_cuda else CUDAExtension

# What simmim_ext checks before it loads the extension: undefined symbols would be the alternative.
(ROOT / "simmim_ext/_build.py").write_text(
    f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\n'
)
major, minor = torch.__version__.split(".")[:2]
setup(
    ext_modules=[
        extension("simmim_ext._C", sources, define_macros=macros, extra_compile_args=flags)
    ],
    cmdclass={"build_ext": BuildExtension},
    install_requires=[
        f"torch=={major}.{minor}.*",
        "numpy",
        "torch-pruning>=1.6",
        "rich",
        "safetensors",
        "tomli; python_version < '3.11'",
    ],
)

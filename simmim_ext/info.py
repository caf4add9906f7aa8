"""``simmim info``: versions, devices, CPU capability, speed table and kernels compiled in."""

import argparse
import json
import platform
from importlib import metadata
from typing import Any

import torch

from ._version import __version__

_PACKAGES = (
    "numpy",
    "torch-pruning",
    "safetensors",
    "rich",
    "matplotlib",
    "jinja2",
    "scikit-learn",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints what ``collect`` found."""
    found = collect()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    width = max(len(name) for entries in found.values() for name in entries)
    for section, entries in found.items():
        print(section)
        for name, value in entries.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {name:<{width}}  {'-' if shown in (None, '') else shown}")


def collect() -> dict[str, dict[str, Any]]:
    """Everything that a report of a problem should say about the installation."""
    from . import _C
    from .nn.tuned import in_force
    from .ops import _library  # noqa: F401  (checks that the extension goes with this torch)

    build = dict(_C.build_info())
    return {
        "versions": {
            "simmim_ext": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{package: _version(package) for package in _PACKAGES},
        },
        "devices": {
            "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "cpu capability": _C.cpu_capability(),
            "best cpu capability": _C.best_cpu_capability(),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "sparse layers": {"speed table": str(in_force(_C.cpu_capability()))},
        "build": build,
        "kernels": _kernels(build["cuda"] is not None),
    }


def _kernels(cuda: bool) -> dict[str, list[str]]:
    """Operator -> the backends that it has a kernel for; CUDA in a build with CUDA alone."""
    names = (name.partition("::") for name in sorted(torch._C._dispatch_get_all_op_names()))
    backends = ["cpu", "cuda"] if cuda else ["cpu"]
    return {name: backends for library, _, name in names if library == "simmim_ext"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""Loads the compiled operators, after making sure that they fit the torch that is here."""

from collections.abc import Callable
from typing import Any

import torch

from .. import _build


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


if _minor(torch.__version__) != _minor(_build.TORCH):
    raise ImportError(
        f"simmim_ext was built against torch {_build.TORCH} and does not fit torch "
        f"{torch.__version__}: rebuild it from its source with "
        "`pip install --no-build-isolation --force-reinstall --no-deps .`"
    )

from .. import _C  # noqa: E402


def operator(name: str) -> Callable[..., Any]:
    """The compiled operator ``simmim_ext::name``, positional arguments only.

    Eager calls go through the direct binding; torch.compile and torch.export, which cannot see
    into it, get the registered operator.
    """
    eager = getattr(_C, name)
    traced = getattr(torch.ops.simmim_ext, name)

    def call(*args: Any) -> Any:
        return traced(*args) if torch.compiler.is_compiling() else eager(*args)

    return call


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: portable, avx2, avx512 or amx."""
    return str(_C.cpu_capability())

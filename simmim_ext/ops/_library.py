"""Loads the compiled operators, after making sure that they fit the torch that is here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

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

# Types of the schemas -> Python's, and what to call them.
_KINDS: dict[str, tuple[Any, str]] = {
    "Tensor": (torch.Tensor, "a tensor"),
    "int": (int, "an int"),
    "float": (int | float, "a number"),
    "bool": (bool, "a bool"),
    "str": (str, "a str"),
}


def operator(name: str) -> Callable[..., Any]:
    """The compiled operator ``simmim_ext::name``, positional arguments only.

    Eager calls go through the direct binding; torch.compile, torch.export and whoever else follows
    calls by ``__torch_function__`` (torch.fx's proxies) cannot see into it, and get the registered
    operator.
    """
    eager = getattr(_C, name)
    traced = getattr(torch.ops.simmim_ext, name)

    def call(*args: Any) -> Any:
        if is_compiling():
            return traced(*args)
        try:
            return eager(*args)
        except TypeError:
            if has_torch_function(args):
                return traced(*args)
            _check_types(name, args)
            raise

    return call


def _check_types(name: str, args: tuple[Any, ...]) -> None:
    """Raises where an argument is not of its type in the schema, naming it as the caller would."""
    arguments = getattr(torch.ops.simmim_ext, name).default._schema.arguments
    caller = args[-1] if arguments[-1].name == "caller" else name
    for argument, value in zip(arguments, args, strict=False):
        schema_type = str(argument.type)
        optional = schema_type.startswith("Optional[")
        kind, expected = _KINDS[schema_type.removeprefix("Optional[").removesuffix("]")]
        if not isinstance(value, kind) and not (optional and value is None):
            raise TypeError(
                f"{caller}: {argument.name} must be {expected}{' or None' if optional else ''}, "
                f"got {type(value).__name__}"
            )
        if isinstance(value, int) and schema_type.endswith(("float", "float]")):
            try:
                float(value)
            except OverflowError:
                raise ValueError(f"{caller}: {argument.name} must be less than 1.8e308") from None


def check_same_device(x: Tensor, other: Tensor | None, caller: str, name: str) -> None:
    """Raises where another argument, if given, is not where x is, as the compiled operators do.

    For operators' fakes, which also serve a call that has one argument on the meta device.
    """
    if other is not None and other.device != x.device:
        raise ValueError(f"{caller}: {name} must be on x's device {x.device}, got {other.device}")


def cpu_capability() -> str:
    """What the CPU kernels use: portable, avx2, avx512, avx512_bf16 or amx."""
    return str(_C.cpu_capability())


def has_cuda_kernels() -> bool:
    """Whether this build has kernels for CUDA."""
    return _C.build_info()["cuda"] is not None

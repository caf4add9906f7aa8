"""simmim_ext: compress trained networks by information.

Importing this package, the information functions and ``simmim_ext.nn`` needs torch and
numpy alone; what the workflow uses beyond that is imported on first use.
"""

from importlib import import_module
from typing import Any

from ._version import __version__
from .errors import SimMIMError

# Public name -> module that defines it. No module carries the name of something public:
# importing it would otherwise replace the function by the module.
_PUBLIC = {
    name: module
    for module, names in {
        "information": (
            "entropy joint_entropy conditional_entropy mutual_information"
            " conditional_mutual_information predictive_information"
        ),
        "significance": "independence_test IndependenceTest",
        "discretization": "discretize Discretized",
        "streaming": "Histogram JointHistogram",
        "scoring": "score Scores",
        "pruning": "prune",
        "distillation": "distill",
        "compression": "compress",
        "result": "CompressionResult load",
        "config": "CompressConfig",
        "diagnosis": "diagnose Diagnostics",
    }.items()
    for name in names.split()
}

__all__ = ["SimMIMError", "__version__", "nn", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "nn":
        return import_module(".nn", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("." + _PUBLIC[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

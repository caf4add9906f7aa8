"""The figures of a report: what both models cost, what they know, how alike they are."""

import platform
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ._version import __version__
from .data import Batch, to_device
from .fidelity import compare
from .forward import ForwardFn
from .measure import count_bytes, count_flops, count_params, latency_conditions, measure_latency
from .modes import device_of


def assess(
    teacher: nn.Module,
    student: nn.Module,
    data: Iterable[Batch],
    example: Batch,
    *,
    name: str,
    noise: float | None = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The "teacher", "student", "fidelity" and "latency" entries of a report.

    Args:
        teacher: the original.
        student: the compressed model, on the same device.
        data: the batches that predictions are compared on.
        example: the batch that latency is measured on; FLOPs are those of its first sample.
        name: what the data is, for the report and for errors.
        noise: as in ``compare``.
        forward_fn: as in ``compress``.
        seed: the bootstrap's.
    """
    found = compare(
        teacher, student, data, noise=noise, forward_fn=forward_fn, seed=seed, name=name
    )
    example = to_device(example, device_of(teacher))
    latency = measure_latency([teacher, student], example, forward_fn)
    entries: dict[str, Any] = {}
    for role, model, milliseconds, knows in (
        ("teacher", teacher, latency[0], found.teacher),
        ("student", student, latency[1], found.student),
    ):
        entries[role] = {
            "params": count_params(model),
            "flops": count_flops(model, example, forward_fn),
            "bytes": count_bytes(model),
            "latency_ms": milliseconds,
            **knows,
        }
    entries["fidelity"] = {**found.fidelity, "data": name}
    entries["latency"] = {**latency_conditions(example), "device": str(device_of(teacher))}
    return entries


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    from importlib.metadata import version

    return {
        "simmim_ext": __version__,
        "torch": torch.__version__,
        "torch_pruning": version("torch-pruning"),
        "python": platform.python_version(),
    }

"""How fast each kernel of a sparse layer is: the measurements that choices are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

FORMAT = "simmim_ext speed table"
# What can be fastest, by the CPU's capability. "compact" is for masks of whole rows and columns,
# "block" for whole blocks, the others for any; "tile" and "pair" multiply in bfloat16. With AMX,
# where the permutations of "planes" take several steps and the products of "pair" are no faster
# than those of float32, neither was measured.
KERNELS = {
    "portable": ("element", "gather", "block", "compact"),
    "avx2": ("element", "gather", "block", "compact"),
    "avx512": ("element", "window", "block", "compact"),
    "avx512_bf16": ("element", "planes", "window", "block", "compact", "tile", "pair"),
    "amx": ("element", "window", "block", "compact", "tile"),
}
DENSE_BFLOAT16 = "dense bfloat16"
ROUNDING = ("tile", "pair")  # of x to bfloat16: for layers of it alone
BFLOAT16 = (*ROUNDING, DENSE_BFLOAT16)  # timed with bfloat16 inputs, the others with float32

# [sizes][batches][densities]
Speeds = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class SpeedTable:
    """How many times as fast as a dense float32 layer each kernel is.

    Attributes:
        package, torch: the versions that were measured.
        cpu: the model of the CPU.
        capability: that the kernels ran with; see ``simmim info``.
        threads: that torch ran.
        measured: the day, as 2026-11-24.
        sizes: of the square weights measured, ascending.
        batches: measured, ascending.
        densities: measured, ascending: the shares of the weights that were kept.
        speeds: kernel -> [sizes][batches][densities]. Zeros do not change the time of
            "dense bfloat16", which has one entry for all densities.
    """

    package: str
    torch: str
    cpu: str
    capability: str
    threads: int
    measured: str
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    densities: tuple[float, ...]
    speeds: dict[str, Speeds]

    def speed(self, kernel: str, size: float, row: int, density: float) -> float:
        """Of a layer of ``size`` squared weights at ``batches[row]``.

        Between the sizes and densities measured it is interpolated on logarithmic axes. Beyond the
        sizes and below the densities it is that of the last one measured; above them a kernel's
        time grows with what is kept.
        """
        i, share = _between(self.sizes, size)
        j, rest = _between(self.densities, density)
        small, large = (self.speeds[kernel][k][row] for k in (i, i + (share > 0)))
        if len(small) == 1:
            j, rest = 0, 0.0
        values = [_mix(line[j], line[j + (rest > 0)], rest) for line in (small, large)]
        beyond = 1.0 if len(small) == 1 else min(1.0, self.densities[-1] / max(density, 1e-9))
        return _mix(values[0], values[1], share) * beyond

    def text(self) -> str:
        """As JSON, a line for each size and batch."""
        head = {k: v for k, v in asdict(self).items() if k != "speeds"}
        lines = [
            f" {json.dumps(k)}: {json.dumps(v)}" for k, v in {"format": FORMAT, **head}.items()
        ]
        kernels = []
        for name, sizes in self.speeds.items():
            rows = [",\n   ".join(json.dumps(line) for line in size) for size in sizes]
            body = "],\n  [".join(f"\n   {row}\n  " for row in rows)
            kernels.append(f"  {json.dumps(name)}: [[{body}]]")
        lines.append(' "speeds": {\n' + ",\n".join(kernels) + "\n }")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def parse(text: str) -> SpeedTable:
    """Reads what ``SpeedTable.text`` wrote.

    Raises:
        ValueError: it is something else; the message goes on from the file's name.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError("is no speed table of simmim_ext")
    names = [field.name for field in fields(SpeedTable)]
    if sorted(found) != sorted(names):
        raise ValueError(f"should hold {', '.join(names)}, and holds {', '.join(map(str, found))}")
    texts = ("package", "torch", "cpu", "capability", "measured")
    for name in texts:
        _check(isinstance(found[name], str), name, "a string", found[name])
    capability, known = found["capability"], ", ".join(KERNELS)
    _check(capability in KERNELS, "capability", f"one of {known}", capability)
    _check(_is_integer(found["threads"]), "threads", "a positive integer", found["threads"])
    for name in ("sizes", "batches"):
        axis = found[name]
        right = _is_ascending(axis) and all(map(_is_integer, axis))
        _check(right, name, "a list of ascending positive integers", axis)
    densities = found["densities"]
    right = _is_ascending(densities) and densities[-1] <= 1
    _check(right, "densities", "a list of ascending numbers in (0, 1]", densities)
    speeds, kernels = found["speeds"], (*KERNELS[capability], DENSE_BFLOAT16)
    right = isinstance(speeds, dict) and sorted(speeds) == sorted(kernels)
    _check(right, "speeds", f"of {', '.join(kernels)}", list(speeds))
    for name, speed in speeds.items():
        columns = 1 if name == DENSE_BFLOAT16 else len(densities)
        shape = (len(found["sizes"]), len(found["batches"]), columns)
        _check(_has_shape(speed, shape), f"speeds of {name}", f"{list(shape)} numbers", speed)
    return SpeedTable(**{name: _frozen(value) for name, value in found.items()})


def _check(right: bool, name: str, rule: str, value: Any) -> None:
    if not right:
        raise ValueError(f"must have {name} that is {rule}, and has {repr(value)[:60]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_ascending(axis: Any) -> bool:
    right = isinstance(axis, list) and len(axis) > 0 and all(map(_is_number, axis))
    return right and all(low < high for low, high in pairwise(axis))


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return _is_number(value)
    right = isinstance(value, list) and len(value) == shape[0]
    return right and all(_has_shape(item, shape[1:]) for item in value)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _frozen(item) for name, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _between(axis: Sequence[float], value: float) -> tuple[int, float]:
    """The last entry that is not above `value`, and how far it is to the next, logarithmically."""
    if value <= axis[0]:
        return 0, 0.0
    for i, (low, high) in enumerate(pairwise(axis)):
        if value < high:
            return i, math.log(value / low) / math.log(high / low)
    return len(axis) - 1, 0.0


def _mix(low: float, high: float, share: float) -> float:
    """Between two speeds, logarithmically."""
    return math.exp((1 - share) * math.log(low) + share * math.log(high))

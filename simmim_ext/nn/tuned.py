"""Which speed table is in force: this machine's own, of ``simmim tune``, or the default."""

from __future__ import annotations

import functools
import platform
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from .._version import __version__
from ..cache import cache_folder
from .speed_table import SpeedTable, parse

DEFAULTS = Path(__file__).parent / "speeds"


class InForce(NamedTuple):
    """A speed table, and where it is from."""

    table: SpeedTable
    path: Path | None  # None: the default

    def __str__(self) -> str:
        where = "the default" if self.path is None else str(self.path)
        table = self.table
        return (
            f"{where}, measured on {table.cpu} with {table.capability}, {table.threads}"
            f" thread{'s' * (table.threads > 1)}, on {table.measured}"
        )


def tuned_path(capability: str, threads: int) -> Path:
    """Where this machine's own table is kept, for a capability and a number of threads."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return cache_folder() / f"speeds-{cpu}-{capability}-threads-{threads}.json"


def in_force(capability: str, threads: int | None = None) -> InForce:
    """The table that choices are made from now.

    Warns of a file that is broken or does not belong here, once for each state of it, and gives
    the default.

    Args:
        capability: of the CPU's kernels; see ``simmim info``.
        threads: None: torch's.
    """
    threads = torch.get_num_threads() if threads is None else threads
    path = tuned_path(capability, threads)
    try:
        changed = path.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return default_table(capability)
    except OSError as error:
        return _refuse(path, f"cannot be read ({error.strerror})", capability)
    return _read(path, changed, capability, threads)


@functools.lru_cache(maxsize=16)
def _read(path: Path, changed: int, capability: str, threads: int) -> InForce:
    try:
        table = parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return _refuse(path, f"cannot be read ({error.strerror})", capability)
    except ValueError as error:
        return _refuse(path, str(error), capability)
    here = {
        "package": __version__, "cpu": cpu_model(), "capability": capability, "threads": threads
    }  # fmt: skip
    for name, value in here.items():
        if getattr(table, name) != value:
            problem = f"was measured with {name} {getattr(table, name)}, and this is {value}"
            return _refuse(path, problem, capability)
    return InForce(table, path)


@functools.cache
def default_table(capability: str) -> InForce:
    """The table that came with the package."""
    return InForce(parse((DEFAULTS / f"{capability}.json").read_text(encoding="utf-8")), None)


def _refuse(path: Path, problem: str, capability: str) -> InForce:
    warnings.warn(
        f"{path} {problem}; sparse layers are chosen from the default speed table instead: run"
        " `simmim tune` to measure a new one, or `simmim tune --reset` to remove it",
        stacklevel=2,
    )
    return default_table(capability)


@functools.cache
def cpu_model() -> str:
    """The CPU's name, with family and model where the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}  # of the first processor, as "model name : AMD EPYC"
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "model name" in found and "model" in found:
        return f"{found['model name']} (family {found.get('cpu family')}, model {found['model']})"
    return platform.processor() or platform.machine() or "unknown"

"""``simmim tune``: measures the speeds from which sparse layers choose their kernels."""

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .cli import integer, say
from .errors import SimMIMError
from .folders import check_writable, write_text
from .progress import bar

if TYPE_CHECKING:
    from rich.table import Table

    from .nn.speed_table import SpeedTable
    from .nn.tuned import InForce

_QUICK: dict[str, Any] = {
    "batches": (1, 4, 9, 16, 17, 64, 65, 128, 512),
    "densities": (0.03, 0.1, 0.3, 0.6, 0.9),
    "seconds": 0.003,
    "runs": 1,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--quick", action="store_true", help="rougher, about 10 seconds instead of a minute"
    )
    action.add_argument("--show", action="store_true", help="print the table that is in force")
    action.add_argument("--reset", action="store_true", help="remove this machine's own table")
    parser.add_argument(
        "--threads",
        type=integer(1, os.cpu_count() or math.inf),
        metavar="N",
        help="for layers on N threads (default: torch's)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the table here, where no layer looks"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Measures and keeps a table, or shows or removes the one that is kept."""
    output: Path | None = arguments.output
    if output is not None and (arguments.show or arguments.reset):
        raise SimMIMError("--output is where a new table goes; leave it out of --show and --reset")
    if output is not None and output.is_dir():
        raise SimMIMError(f"--output {output} is a folder; name a file in it")
    from .nn.tuned import InForce, in_force, tuned_path
    from .ops._library import cpu_capability

    capability, threads = cpu_capability(), arguments.threads or torch.get_num_threads()
    path = tuned_path(capability, threads)
    if arguments.reset:
        _remove(path)
        return
    if arguments.show:
        found = in_force(capability, threads)
    else:
        path = output or path
        table = _measure(path, threads, arguments.quick)
        found = InForce(table, path)
    if arguments.json:
        print(found.table.text(), end="")
        return
    from rich.console import Console

    print(f"Speed table: {found}")
    for pattern in ("element", "block", "rows/columns"):
        Console().print(draw(found, pattern))


def _measure(path: Path, threads: int, quick: bool) -> "SpeedTable":
    from .nn.tuning import measure_speeds

    check_writable(path.parent)
    say(
        f"Timing sparse kernels on {threads} thread{'s' * (threads > 1)}: about "
        f"{'10 seconds' if quick else 'a minute'} where nothing else runs, which would spoil it"
    )
    begin, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with bar("tune", 1.0) as advance:
            table = measure_speeds(progress=advance, **(_QUICK if quick else {}))
    finally:
        torch.set_num_threads(before)
    write_text(path, table.text())
    say(f"Wrote {path} after {time.perf_counter() - begin:.0f} s")
    return table


def draw(found: "InForce", pattern: str, size: int = 1024) -> "Table":
    """The fastest kernel of a layer by density and batch, and its speed: a rich table."""
    from rich.table import Table

    from .nn.choice import choose_from

    table = found.table
    shown = [b for b in table.batches if b in (1, 4, 16, 128) or b == table.batches[-1]]
    drawn = Table("kept", title=f"{pattern}, {size} x {size}: times as fast as dense float32")
    for batch in shown:
        drawn.add_column(f"batch {batch}", justify="right")
    for density in table.densities:
        choice = choose_from(found, pattern, density, size, torch.float32)
        speeds = [(batch, speed) for batch, speed in choice.speeds if batch in shown]
        drawn.add_row(f"{density:.0%}", *(f"{choice.kernel(b)} {speed:.1f}" for b, speed in speeds))
    return drawn


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        say(f"There is no {path}: the default speed table is in force")
    else:
        say(f"Removed {path}: the default speed table is in force")

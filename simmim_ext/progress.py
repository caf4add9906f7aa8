"""Progress bars on standard error: none where it is not a terminal or nobody wants them."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(
    description: str, total: float | None = None, *, enabled: bool = True
) -> Iterator[Callable[[float], None]]:
    """Shows a bar while the block runs; yields ``advance(steps)``."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as display:
        task = display.add_task(description, total=total)
        yield lambda steps: display.advance(task, steps)


@contextmanager
def stage(stages: list[dict[str, Any]], name: str, progress: bool) -> Iterator[None]:
    """Shows that a stage is running and notes the seconds that it took."""
    begin = time.perf_counter()
    with bar(name, enabled=progress):
        yield
    stages.append({"name": name, "seconds": time.perf_counter() - begin})

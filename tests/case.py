"""What the case table says of one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One operator with what is needed to test it."""

    name: str  # as registered: torch.ops.simmim_ext.<name>
    op: Callable[..., Any]
    reference: Callable[..., Any]  # the same arguments, plain torch or numpy
    arguments: Callable[[str], Iterator[tuple[Any, ...]]]  # device -> argument tuples
    bad: tuple[tuple[Callable[[], tuple[Any, ...]], type[Exception], str], ...]
    tolerance: float = 0.0  # absolute; 0: exact
    thread_tolerance: float = 0.0  # where torch's own products, which vary so, do the work
    differentiable: bool = False  # gradcheck with float64 arguments

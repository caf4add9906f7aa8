"""The workflow's exception and its warnings; argument errors are plain ValueError and TypeError."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = str(Path(__file__).parent) + os.sep

# Steps whose errors begin with their own names, which callers of the package do not know.
_STEPS = ("trace_units", "collect", "remove_units", "prune_weights", "apply_history")


class SimMIMError(ValueError):
    """A model, budget, data set or file that cannot be handled; the message says what to do."""


def warn(message: str) -> None:
    """Warns at the line outside the package that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


@contextmanager
def about(argument: str) -> Iterator[None]:
    """A block whose errors begin with the argument, or the function, that they are about."""
    try:
        yield
    except SimMIMError as error:
        error.args = (f"{argument}: {error}",)
        raise


def in_own_name(function: Callable[P, R]) -> Callable[P, R]:
    """The function, in whose errors its own name stands for that of a step inside it."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SimMIMError as error:
            step, _, rest = str(error).partition(": ")
            if step in _STEPS:
                error.args = (f"{function.__name__}: {rest}",)
            raise

    return call

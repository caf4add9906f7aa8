"""A limit on the time that a piece of Python may take."""

import ctypes
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

import torch

T = TypeVar("T")

# A loop that swallows exceptions (a bare `except:`) is stopped by raising in it again.
_ATTEMPTS = 50
_PATIENCE = 0.1


class _Stopped(BaseException):
    """Raised inside the work when its time is up."""


def run_limited(work: Callable[[], T], seconds: float) -> T:
    """Returns ``work()``, or stops it after ``seconds`` and raises TimeoutError.

    The work runs in a thread of its own, and the exception that stops it is raised in that
    thread between two bytecodes, so that it works from any thread and on any platform, which
    signals do not. A single call into native code is stopped when it returns. Gradients are
    enabled in the work, whatever the caller's mode is; its CUDA stream and context variables are
    the caller's.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream() if initialized else None
    context = copy_context()

    def target() -> None:
        try:
            with torch.cuda.stream(stream):
                outcome.append(context.run(work))
        except BaseException as error:  # handed to the caller below, whatever it is
            failure.append(error)

    thread = threading.Thread(target=target, name="simmim_ext.run_limited", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        late = thread.is_alive()
        if late:
            _stop(thread)
    if late:
        raise TimeoutError(f"stopped after {seconds:g} s")
    if failure:
        raise failure[0]
    return outcome[0]


def _stop(thread: threading.Thread) -> None:
    for _ in range(_ATTEMPTS):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped)
        )
        thread.join(_PATIENCE)
        if not thread.is_alive():
            return

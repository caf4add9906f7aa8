"""Batches stay as they are, whatever models do to their inputs.

Calibration batches are gathered once and passed again and again. A model that changes its input in
place (``nn.ReLU(inplace=True)`` at its front, ``x.sub_(mean)`` in its forward) would ruin them, so
it is given copies; any other model is not, since copies take time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class _Watch:
    """Which models have been seen in a whole call, and whether one of them changed its input."""

    def __init__(self, models: int) -> None:
        self.models = models
        self.seen: list[nn.Module] = []
        self.changed = False


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def inputs_kept(*, models: int = 1) -> Iterator[None]:
    """During the block no call by ``forward`` changes its batch.

    Args:
        models: how many run that are no kin. Before as many were seen, all calls are given copies.
    """
    token = _WATCH.set(_Watch(models))
    try:
        yield
    finally:
        _WATCH.reset(token)


class Copies:
    """Copies of the tensors that one call is given."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._made: list[Tensor] = []

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor."""
        self._made.append(tensor.clone())
        return self._made[-1]

    def end(self, model: nn.Module) -> None:
        """Notes what the call, which ran to its end, has done to them."""
        if torch.is_inference_mode_enabled():  # in which tensors have no version
            return
        watch = self._watch
        watch.changed |= any(tensor._version > 0 for tensor in self._made)
        if len(watch.seen) < watch.models and not any(model is other for other in watch.seen):
            watch.seen.append(model)


def copies() -> Copies | None:
    """Copies for the next call, or None where it can do without."""
    watch = _WATCH.get()
    if watch is None or (not watch.changed and len(watch.seen) >= watch.models):
        return None
    return Copies(watch)

"""The state of a run on disk, so that a run that was killed goes on where it was."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._version import __version__
from .data import Batch, take, to_device
from .errors import SimMIMError
from .folders import check_writable, read_folder, write_folder
from .forward import ForwardFn, forward
from .modes import device_of, evaluating
from .storage import Json, digest, tensors_of

FORMAT = "simmim_ext checkpoint"

# The tensor that the teacher's answers are kept as, and by what share of the largest they may
# differ in a run that goes on: other threads or kernels round otherwise.
_ANSWERS = "answers"
_ROUNDING = 1e-2


class Checkpoint:
    """One run's state in a folder; with no folder nothing is kept.

    Args:
        folder: where the state is kept, or None.
        identity: what the run is (see ``identity_of``); another run's state is refused.
        answers: what the teacher says to the run (see ``answers_of``); so are other answers.
    """

    def __init__(self, folder: str | PathLike[str] | None, identity: str, answers: Tensor) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = identity
        self._answers = answers

    def load(self) -> tuple[dict[str, Tensor], Json] | None:
        """The state kept last, or None where there is none yet.

        Raises:
            SimMIMError: the state is damaged, or another run's; or none could be kept there.
        """
        if self._folder is None:
            return None
        check_writable(self._folder)
        if not (self._folder / "manifest.json").exists():
            return None
        try:
            tensors, body = read_folder(self._folder, FORMAT)
        except SimMIMError as error:
            raise SimMIMError(
                f"checkpoint_dir: {error}; give another folder, or delete "
                f"{self._folder} to start again"
            ) from error
        if body["identity"] != self._identity or not _alike(tensors.pop(_ANSWERS), self._answers):
            raise SimMIMError(
                f"checkpoint_dir: {self._folder} holds the state of a run with another model, "
                "calibration data, example_inputs, forward_fn, budget, option, configuration or "
                "version, or one of the two is without evaluate; give another folder, or delete it"
            )
        return tensors, body["state"]

    def save(self, tensors: dict[str, Tensor], state: Json) -> None:
        """Replaces the state kept; a kill leaves the old one or the new one."""
        if self._folder is not None:
            body = {"format": FORMAT, "identity": self._identity, "state": state}
            write_folder(self._folder, {**tensors, _ANSWERS: self._answers}, body)


def answers_of(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> Tensor:
    """[samples, outputs] float32 of the batch's first 16 samples, by which ``forward_fn`` is known.

    A function has no digest of its own.
    """
    few = to_device(take(batch, slice(0, 16)), device_of(model))
    with evaluating(model), torch.no_grad():
        return forward(model, few, forward_fn).float().cpu().contiguous()


def identity_of(model: nn.Module, data: Iterable[Batch], settings: Json) -> str:
    """SHA-256 of the model's weights, the batches' tensors, the settings and our version."""
    sha = hashlib.sha256(json.dumps([__version__, settings], sort_keys=True).encode())
    sha.update(digest(tensors_of(model)[0]).encode())
    for batch in data:
        sha.update(digest(dict(_named_tensors(batch, "batch"))).encode())
    return sha.hexdigest()


def _alike(kept: Tensor, answers: Tensor) -> bool:
    """Whether they are the same but for rounding."""
    if kept.shape != answers.shape:
        return False
    allowed = _ROUNDING * float(kept.abs().max())
    return torch.allclose(kept, answers, rtol=0, atol=allowed, equal_nan=True)


def _named_tensors(value: Any, name: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named_tensors(item, f"{name}.{i}")

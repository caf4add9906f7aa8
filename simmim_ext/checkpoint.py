"""The state of a run on disk, so that a run that was killed goes on where it was."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ._version import __version__
from .data import Batch
from .errors import SimMIMError
from .storage import Json, check_writable, digest, read_folder, tensors_of, write_folder

FORMAT = "simmim_ext checkpoint"


class Checkpoint:
    """One run's state in a folder; with no folder nothing is kept.

    Args:
        folder: where the state is kept, or None.
        identity: what the run is (see ``identity_of``); another run's state is refused.
    """

    def __init__(self, folder: str | PathLike[str] | None, identity: str) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = identity

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
                f"checkpoint_dir: {error}; or delete {self._folder} to start again"
            ) from error
        if body["identity"] != self._identity:
            raise SimMIMError(
                f"checkpoint_dir: {self._folder} holds the state of a run with another model, "
                "calibration data, budget, configuration or version; give another folder, or "
                "delete it"
            )
        return tensors, body["state"]

    def save(self, tensors: dict[str, Tensor], state: Json) -> None:
        """Replaces the state kept; a kill leaves the old one or the new one."""
        if self._folder is not None:
            body = {"format": FORMAT, "identity": self._identity, "state": state}
            write_folder(self._folder, tensors, body)


def identity_of(model: nn.Module, data: Iterable[Batch], settings: Json) -> str:
    """SHA-256 of the model's weights, the batches' tensors, the settings and our version."""
    sha = hashlib.sha256(json.dumps([__version__, settings], sort_keys=True).encode())
    sha.update(digest(tensors_of(model)[0]).encode())
    for batch in data:
        sha.update(digest(dict(_named_tensors(batch, "batch"))).encode())
    return sha.hexdigest()


def _named_tensors(value: Any, name: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named_tensors(item, f"{name}.{i}")

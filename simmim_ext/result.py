"""The outcome of a compression: a model, a report, and the way to disk and back."""

import json
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import nn

from ._version import __version__
from .arguments import as_path, check_module
from .errors import SimMIMError, about, in_own_name
from .folders import read_folder, write_folder
from .nn import SparseLinear
from .shown import listed, result_lines
from .storage import check_signature, restore_tensors, tensors_of

FORMAT = "simmim_ext compressed model"
FORMAT_VERSION = 1

# What a manifest of this version has.
_FIELDS = {"format_version": int, "original": dict, "history": list, "state": dict}


@dataclass(frozen=True)
class CompressionResult:
    """A compressed model and what is known about it.

    Attributes:
        model: the compressed model, on the original's device and in its modes.
        report: figures, a dict that is JSON as it stands.
        history: what was removed, in order; replayed on a fresh instance by ``load``.
        original: shape of every tensor of the original's state by name.
    """

    model: nn.Module
    report: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    original: dict[str, list[int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return listed("CompressionResult", list(result_lines(self.report)))

    def save(self, dir: str | PathLike[str]) -> None:
        """Saves model and report into a new or an empty folder, without pickle.

        Raises:
            SimMIMError: the folder is not empty or can't be written, or the model was accelerated,
                which ``load`` could not make again.
        """
        path = as_path("save", dir, "dir")
        try:
            occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise SimMIMError(f"save: cannot look into {path}: {error}") from error
        if occupied:
            raise SimMIMError(f"save: {path} is not an empty folder; give a new or an empty one")
        self._check_can_be_loaded()
        tensors, description = tensors_of(self.model)
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "simmim_ext": __version__,
            "original": self.original,
            "history": self.history,
            "state": description,
        }
        report = json.dumps(self.report, indent=2) + "\n"
        with about("save"):
            write_folder(path, tensors, body, {"report.json": report})

    def _check_can_be_loaded(self) -> None:
        for name, module in self.model.named_modules():
            # Those of the original are made with it.
            if isinstance(module, SparseLinear) and f"{name}.bitmap" not in self.original:
                raise SimMIMError(
                    "save: model must not have been accelerated, for load could not make its "
                    f"SparseLinear {name!r}; save it as it was before, and accelerate what load "
                    "gives"
                )


@in_own_name
def load(dir: str | PathLike[str], model: nn.Module) -> nn.Module:
    """Loads a saved compressed model.

    Args:
        dir: the folder where ``CompressionResult.save`` put it.
        model: an instance of the original, uncompressed architecture with any weights; it is not
            changed, and the new model takes its device and modes. One on the meta device will do,
            which takes no memory; the new model is on the CPU then.

    Returns:
        A new model with the compressed structure and weights.

    Raises:
        SimMIMError: the files are missing, damaged or foreign, or the model is of another
            architecture.
    """
    check_module("load", model)
    path = as_path("load", dir, "dir")
    with about("load"):
        tensors, body = read_folder(path, FORMAT)
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SimMIMError(
            f"load: {path} has format version {version}, this simmim_ext {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade to {body.get('simmim_ext', 'a newer one')} or newer"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(body.get(name), kind):
            raise SimMIMError(
                f"load: {path / 'manifest.json'} must hold a {kind.__name__} {name!r}, and holds "
                f"{body.get(name)!r}; restore it or save again"
            )
    check_signature(model, body["original"], f"load: {path}")
    with torch.inference_mode(False):  # trained outside of it too
        return rebuild(model, body["history"], tensors, body["state"])


def rebuild(
    model: nn.Module,
    history: list[dict[str, Any]],
    tensors: dict[str, Any],
    description: dict[str, Any],
) -> nn.Module:
    """A copy of the original ``model`` with the history replayed and the tensors put back."""
    from .removal import apply_history

    rebuilt = apply_history(model, history)
    restore_tensors(rebuilt, tensors, description)
    return rebuilt

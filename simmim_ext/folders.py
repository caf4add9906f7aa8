"""Folders of tensors, JSON and texts on disk, checked by digest, replaced atomically.

The digests find damaged and hand-edited files; they are no signature.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from torch import Tensor

from .errors import SimMIMError
from .storage import Json


def write_folder(
    folder: Path, tensors: dict[str, Tensor], body: Json, texts: dict[str, str] | None = None
) -> None:
    """Writes weights, JSON and further text files into the folder; all of it or nothing.

    The weights' file is named by its content, and manifest.json, which names it, comes last: a
    kill at any moment leaves the pair that was there or the new one.

    Raises:
        SimMIMError: the disk is full, the folder can't be written, ...
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = folder / "weights.partial"
    written = [partial]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        sha = _sha256_file(partial)
        _flush(partial)
        weights = folder / f"weights-{sha[:12]}.safetensors"
        if not weights.exists():
            written.append(weights)
        os.replace(partial, weights)
        for name, text in (texts or {}).items():
            written.append(folder / name)
            write_text(folder / name, text)
        manifest = {**body, "weights": {"file": weights.name, "sha256": sha}}
        if texts:
            manifest["texts"] = {name: _sha256_file(folder / name) for name in texts}
        manifest["sha256"] = _sha256_json(manifest)
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise _cannot_write(folder, error) from error
    for old in folder.glob("weights-*.safetensors"):
        if old != weights:
            with contextlib.suppress(OSError):
                old.unlink()


def remove_folder(folder: Path) -> None:
    """Removes what ``write_folder`` wrote, and the folder where nothing else is in it."""
    with contextlib.suppress(OSError):
        # Weights without a manifest are nothing; a manifest without them would be damage.
        (folder / "manifest.json").unlink(missing_ok=True)
        for weights in (*folder.glob("weights-*.safetensors"), *folder.glob("weights.partial")):
            weights.unlink()
        folder.rmdir()


def check_writable(folder: Path) -> None:
    """Raises SimMIMError unless files can be made in the folder, which is made if not there.

    To be called before work whose result is to be kept in it.
    """
    probe = folder / "probe.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise _cannot_write(folder, error) from error


def read_folder(folder: Path, form: str) -> tuple[dict[str, Tensor], Json]:
    """Reads what ``write_folder`` wrote; ``form`` is the body's "format" expected.

    Raises:
        SimMIMError: nothing is there, or it is foreign, damaged, or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(folder, form)
    try:
        entry = manifest.pop("weights")
        weights = folder / Path(entry["file"]).name
        _check_file(weights, entry["sha256"])
        return load_file(weights), manifest
    except (SafetensorError, KeyError, TypeError) as error:
        raise SimMIMError(
            f"the weights of {folder} cannot be read: {error}; restore them or save again"
        ) from error


def read_manifest(folder: Path, form: str) -> Json:
    """``read_folder`` without reading the weights, whose "file" and "sha256" it has."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SimMIMError(
            f"{folder} holds no manifest.json: nothing was saved there, or saving was interrupted; "
            "give the folder of a result that was saved"
        ) from None
    except (OSError, ValueError) as error:
        raise SimMIMError(f"{path} cannot be read: {error}; restore it or save again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != form:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise SimMIMError(f"{path} is not a {form} file: its format is {found!r}")
    claimed = manifest.pop("sha256", None)
    if claimed != _sha256_json(manifest):
        raise SimMIMError(f"{path} was changed after it was written; restore it or save again")
    for name, sha in manifest.pop("texts", {}).items():  # what was saved before has none
        if (folder / name).exists():
            _check_file(folder / name, sha)
    return manifest


def _check_file(path: Path, sha: str) -> None:
    """Raises SimMIMError where a file is not the one that was written."""
    try:
        found = _sha256_file(path)
    except OSError as error:
        raise SimMIMError(f"{path} cannot be read: {error}; restore it or save again") from error
    if found != sha:
        raise SimMIMError(
            f"{path} is damaged: its SHA-256 is not the one in manifest.json; restore it or save "
            "again"
        )


def _cannot_write(folder: Path, error: Exception) -> SimMIMError:
    return SimMIMError(
        f"cannot write to {folder}: {error}; free some space there or choose another folder"
    )


def write_text(path: Path, text: str) -> None:
    """Writes a text file, replacing what was there at once."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sha256_file(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def _sha256_json(body: Json) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

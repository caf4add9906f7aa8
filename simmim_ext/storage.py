"""Models and states on disk: safetensors and JSON, checked by digest, replaced atomically.

The digests find damaged and hand-edited files; they are no signature.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SimMIMError
from .nn import MaskedLinear

Json = dict[str, Any]


def masked_layers(model: nn.Module) -> list[tuple[str, MaskedLinear]]:
    """The model's masked layers with their names."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, MaskedLinear)]


def tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], Json]:
    """The model's state as it is stored, and what is needed to put it back.

    Shared tensors are stored once. A masked layer's weight is stored as the kept weights
    [kept], row by row, and its mask as bits [ceil(weights / 8)] uint8.

    Raises:
        SimMIMError: the model's state holds something that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise SimMIMError(
                f"the model's state {name!r} is a {type(value).__name__}; only tensors can be "
                "saved: remove get_extra_state, or save the model by other means"
            )
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() > 0 and key in first:
            shared[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach()
    masked = []
    for name, _ in masked_layers(model):
        mask = tensors[f"{name}.mask"]
        masked.append(name)
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"][mask]
        bits = np.packbits(mask.cpu().numpy().reshape(-1))
        tensors[f"{name}.mask"] = torch.from_numpy(bits)
    stored = {name: value.cpu().contiguous() for name, value in tensors.items()}
    return stored, {"shared": shared, "masked": masked}


def restore_tensors(model: nn.Module, tensors: dict[str, Tensor], description: Json) -> None:
    """Puts what ``tensors_of`` gave back into a model of the same structure, in place.

    Linear layers that were masked ones become MaskedLinear; dtypes become the stored ones.

    Raises:
        SimMIMError: the tensors do not belong to this model.
    """
    tensors = dict(tensors)
    try:
        for name in description["masked"]:
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.Linear | MaskedLinear):
                raise TypeError(f"{name} is a {type(layer).__name__}, not a linear layer")
            bits = tensors[f"{name}.mask"].numpy()
            shape = layer.weight.shape
            mask = torch.from_numpy(np.unpackbits(bits, count=shape.numel()).astype(bool))
            mask = mask.reshape(shape)
            kept = tensors[f"{name}.weight"]
            tensors[f"{name}.weight"] = torch.zeros(shape, dtype=kept.dtype)
            tensors[f"{name}.weight"][mask] = kept
            tensors[f"{name}.mask"] = mask
            if not isinstance(layer, MaskedLinear):
                masked = MaskedLinear.from_linear(layer, mask.to(layer.weight.device))
                set_submodule(model, name, masked.train(layer.training))
        for name, source in description["shared"].items():
            tensors[name] = tensors[source]
        for name, value in model.state_dict(keep_vars=True).items():
            if name in tensors and value.dtype != tensors[name].dtype:
                value.data = value.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise SimMIMError(
            f"the stored weights do not fit the model: {str(error).splitlines()[0]}; "
            "give an instance of the original architecture"
        ) from error


def set_submodule(model: nn.Module, name: str, module: nn.Module | nn.Parameter) -> None:
    """Replaces the submodule of that dotted name at all names that it has, or the parameter."""
    if isinstance(module, nn.Parameter):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
        return
    old = model.get_submodule(name)
    places = [(p, c) for p in model.modules() for c, found in p._modules.items() if found is old]
    for place, child in places:
        setattr(place, child, module)


def signature_of(model: nn.Module) -> dict[str, list[int]]:
    """Shape of every tensor of the model's state by name: tells one architecture from others."""
    return {
        name: list(value.shape)
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def check_signature(model: nn.Module, expected: dict[str, list[int]], what: str) -> None:
    """Raises SimMIMError where the model's tensors have other names or shapes than expected."""
    found = signature_of(model)
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise SimMIMError(
                f"{what} belongs to another architecture: {name} is "
                f"{expected.get(name, 'missing')} there and {found.get(name, 'missing')} in the "
                "model given; give an instance of the original, uncompressed architecture"
            )


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


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

    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SimMIMError(
            f"{folder} holds no manifest.json: nothing was saved there, or saving was interrupted"
        ) from None
    except (OSError, ValueError) as error:
        raise SimMIMError(f"{path} cannot be read: {error}; restore it or save again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != form:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise SimMIMError(f"{path} is not a {form} file: its format is {found!r}")
    claimed = manifest.pop("sha256", None)
    if claimed != _sha256_json(manifest):
        raise SimMIMError(f"{path} was changed after it was written; restore it or save again")
    try:
        entry = manifest.pop("weights")
        weights = folder / Path(entry["file"]).name
        if _sha256_file(weights) != entry["sha256"]:
            raise SimMIMError(
                f"{weights} is damaged: its SHA-256 is not the one in manifest.json; restore it "
                "or save again"
            )
        return load_file(weights), manifest
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise SimMIMError(
            f"the weights of {folder} cannot be read: {error}; restore them or save again"
        ) from error


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

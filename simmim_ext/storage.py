"""Models as tensors and JSON, and back."""

import hashlib
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

    Linear layers that were masked ones become MaskedLinear; dtypes become the stored ones. What is
    on the meta device gets memory on the CPU.

    Raises:
        SimMIMError: the tensors do not belong to this model, or it has a buffer without values that
            no state holds.
    """
    _materialize(model)
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
            tensors[f"{name}.weight"] = torch.zeros(shape, dtype=kept.dtype, device="cpu")
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
            f"the stored weights do not fit the model: {' '.join(str(error).split())[:300]}; "
            "give an instance of the original architecture"
        ) from error


def _materialize(model: nn.Module) -> None:
    """Gives tensors on the meta device memory on the CPU, in place; what was one stays one."""
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is None or not value.is_meta:
                    continue
                if name in module._non_persistent_buffers_set:
                    raise SimMIMError(
                        f"the model's buffer {f'{path}.{name}'.lstrip('.')!r} is on the meta "
                        "device, and nothing that is saved holds its values; make the instance on "
                        "the CPU"
                    )
                if id(value) not in made:
                    new = torch.empty_like(value, device="cpu")
                    whole = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(new, value.requires_grad) if whole else new
                held[name] = made[id(value)]


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

"""Whole models with masked layers: made fast for inference, or plain for export."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .choice import Choice
from .masked import MaskedLinear, has_own_forward
from .packing import decompress_mask
from .pattern import recognise
from .sparse import DTYPES, SparseLinear

# Modules of torch's -> their layers whose weights they read themselves.
_READERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("out_proj",),
    nn.TransformerEncoderLayer: ("linear1", "linear2"),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` chose; ``str()`` makes a table of it, and rich draws one.

    Attributes:
        layers: layer name -> its choice; last come the plain layers whose weights are mostly 0,
            which stay as they are.
    """

    layers: dict[str, Choice]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The same for JSON: layer name -> ``Choice.to_dict()``."""
        return {name: choice.to_dict() for name, choice in self.layers.items()}

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __rich__(self) -> Any:
        from rich.table import Table

        head, *rows = self._rows()
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        return table

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("layer", "pattern", "kept", "kernels", "expected speed, x dense", "why")
        ]
        for name, one in self.layers.items():
            words = (one.kernels_text(), one.speeds_text() or "-", one.reason)
            rows.append((name, one.pattern, f"{one.density:.1%}", *words))
        return rows


def accelerate(
    model: nn.Module, *, dtype: torch.dtype | None = None, memory: str = "fast"
) -> nn.Module:
    """A new model in which every masked layer is the fastest equivalent, for inference.

    Each MaskedLinear becomes a SparseLinear, as does each SparseLinear anew, whose kernels are
    chosen by the mask's pattern, its density, its size and the batch, from measurements: a
    default, or this machine's own once ``simmim tune`` has run. What was chosen, why and what to
    expect of it is logged at level INFO, and kept as ``.acceleration`` of the new model:
    ``print(accelerate(model).acceleration)``, or ``.acceleration.to_dict()`` as data.

    Args:
        model: any model; it stays as it is, and the rest of the new one is a deep copy.
        dtype: of the new layers' weights; None: the layers' own. See ``SparseLinear``. Layers whose
            weights torch's MultiheadAttention and TransformerEncoderLayer read keep their own.
        memory: "fast" or "small"; see ``SparseLinear``.

    Raises:
        ValueError: a masked layer has hooks or a forward of its own, which the new one would lose,
            or is on the meta device; or the model has an ``acceleration`` of its own, or holds what
            cannot be copied; or `memory` is unknown.
        TypeError: `model` is no module, or `dtype` none that a ``SparseLinear`` has.
    """
    check_is_module("accelerate", model)
    own = getattr(model, "acceleration", Acceleration({}))
    if not isinstance(own, Acceleration):  # one of ours is replaced
        raise ValueError(
            "accelerate: model must have no attribute 'acceleration', which the new model says its"
            f" choices in, got one of type {type(own).__name__}; rename it"
        )
    layers: dict[str, Choice] = {}
    readers = _readers(model)

    def convert(name: str, layer: Any) -> nn.Module:
        if isinstance(layer, SparseLinear):
            shape = layer.out_features, layer.in_features
            kept = decompress_mask(layer.bitmap, layer.values, shape)
            masked = MaskedLinear.from_linear(layer.to_dense(), kept)
        else:
            masked = layer
        if masked.weight.is_meta:
            raise ValueError(
                f"accelerate: layer {name!r} must hold weights, got the meta device; load it first"
            )
        own, reader = masked.weight.dtype, readers.get(id(layer))
        sparse = masked.to_sparse(dtype if reader is None else own, memory)
        reason = sparse.choice.reason
        if reader is not None and dtype not in (None, own):
            reason += f"; it keeps {own}, for {reader} reads its weight"
        layers[name or "(model)"] = replace(sparse.choice, reason=reason)
        return sparse

    result = _replaced(model, (MaskedLinear, SparseLinear), convert, "accelerate")
    for name, layer in model.named_modules():
        if _is_mostly_zeros(layer):
            layers[name or "(model)"] = _unmasked(layer)
    result.acceleration = Acceleration(layers)  # type: ignore[assignment]
    _log.info("accelerate:\n%s", result.acceleration)
    return result


def strip(model: nn.Module) -> nn.Module:
    """A new model in which every masked or sparse layer is a plain ``nn.Linear`` with zeros.

    It needs nothing of this library: to export, script or quantize it (torch's ``quantize_dynamic``
    passes masked and sparse layers over), or to train all of its weights again. Parameters that
    masked layers share stay shared. A layer of half precision, as ``accelerate`` makes with
    ``dtype``, stays so, and as an ``nn.Linear`` no longer takes float32.

    Args:
        model: any model; it stays as it is, and the rest of the new one is a deep copy.

    Raises:
        ValueError: a masked or sparse layer has hooks or a forward of its own, which the new one
            would lose, or shares a weight in which not all that it masks is 0; or the model holds
            what cannot be copied.
        TypeError: `model` is no module.
    """
    check_is_module("strip", model)
    places = _places(model)
    shared: dict[int, Tensor] = {}  # a parameter's id -> what it is in the new model

    def convert(name: str, layer: Any) -> nn.Module:
        dense: nn.Linear = layer.to_dense()
        for key, parameter in layer._parameters.items():
            others = [place for place in places.get(id(parameter), ()) if place != f"{name}.{key}"]
            if not others:
                continue
            if key == "weight" and parameter.masked_select(~layer.mask).any():
                raise ValueError(
                    f"strip: layer {name!r} must not share its weight with {', '.join(others)}"
                    " where not all that it masks is 0; give it one of its own:"
                    " layer.weight = nn.Parameter(layer.weight.detach().clone())"
                )
            setattr(dense, key, shared.setdefault(id(parameter), getattr(dense, key)))
        return dense

    result = _replaced(model, (MaskedLinear, SparseLinear), convert, "strip", shared)
    for module in result.modules():
        if isinstance(vars(module).get("acceleration"), Acceleration):  # of layers that are gone
            del module.acceleration
    return result


def hooks_of(layer: nn.Module) -> list[str]:
    """The kinds of hooks that a layer has, which one in its place would lose."""
    hooks = [key for key, value in vars(layer).items() if key.endswith("_hooks") and value]
    if is_parametrized(layer):  # whose names in old checkpoints one of torch's own translates
        hooks = [key for key in hooks if key != "_load_state_dict_pre_hooks"]
    return hooks


def _replaced(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    convert: Callable[[str, Any], nn.Module],
    caller: str,
    shared: dict[int, Tensor] | None = None,
) -> nn.Module:
    """A copy of the model with its layers of some kinds converted, a shared one once.

    `shared` is read once all are converted: what else of the model has a copy already, by id.
    """
    converted: dict[int, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):
            _check_loses_nothing(caller, name, layer, kinds)
            converted[id(layer)] = convert(name, layer)
        else:
            _check_can_be_copied(caller, name, layer)
    return copy.deepcopy(model, {**converted, **(shared or {})})


def check_is_module(caller: str, model: Any, argument: str = "model") -> None:
    """Raises TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        holds_one = isinstance(getattr(model, "model", None), nn.Module)  # as a result does
        raise TypeError(
            f"{caller}: {argument} must be a torch.nn.Module, got {type(model).__name__}"
            + ("; give its attribute model" if holds_one else "")
        )


def _check_loses_nothing(
    caller: str, name: str, layer: nn.Module, kinds: tuple[type[nn.Module], ...]
) -> None:
    lost = hooks_of(layer)
    if lost:
        raise ValueError(
            f"{caller}: layer {name!r} must not have hooks, which the new layer would lose, got"
            f" {', '.join(lost)}; remove them first"
        )
    if has_own_forward(layer, *kinds):
        raise ValueError(
            f"{caller}: layer {name!r} must not have a forward of its own, which the new layer"
            f" would lose, got a {type(layer).__name__}; have it hold the masked layer instead"
        )


def _check_can_be_copied(caller: str, name: str, layer: nn.Module) -> None:
    for key, value in vars(layer).items():
        if isinstance(value, Tensor) and not value.is_leaf:
            raise ValueError(
                f"{caller}: layer {name!r} must not hold tensors computed from parameters, which"
                f" cannot be copied, got {key!r}; make it final first, with"
                " torch.nn.utils.prune.remove or torch.nn.utils.remove_weight_norm"
            )


def _readers(model: nn.Module) -> dict[int, str]:
    """The ids of layers whose weight a module of torch's reads itself -> that module's class."""
    return {
        id(getattr(module, name, None)): kind.__name__
        for module in model.modules()
        for kind, names in _READERS.items()
        if isinstance(module, kind)
        for name in names
    }


def _places(model: nn.Module) -> dict[int, list[str]]:
    """The ids of parameters -> their names, one for each module that holds them."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{name}.{key}")
    return found


def _is_mostly_zeros(layer: nn.Module) -> bool:
    """Whether it is a plain layer, of a plain weight that is there and has few that are not 0."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight
    if weight.dtype not in DTYPES or weight.is_meta:
        return False
    return 2 * int(weight.count_nonzero()) < weight.numel()


def _unmasked(layer: nn.Linear) -> Choice:
    reason = "not masked: MaskedLinear.from_linear(layer, layer.weight != 0) would make it sparse"
    pattern = recognise(layer.weight != 0)
    return Choice(pattern.name, pattern.density, ((None, "dense"),), reason)

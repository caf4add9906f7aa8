"""Whole models with masked layers: made fast for inference, or plain for export."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .choice import Choice
from .masked import MaskedLinear
from .sparse import SparseLinear

_HEAD = ("layer", "pattern", "kept", "kernels", "expected speed, x dense", "why")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` chose; ``str()`` makes a table of it, and rich draws one.

    Attributes:
        layers: layer name -> its choice.
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

    Each MaskedLinear becomes a SparseLinear, whose kernels are chosen by the mask's pattern, its
    density, its size and the batch, from measurements: a default, or this machine's own once
    ``simmim tune`` has run. What was chosen, why and what to expect of it is logged at level INFO,
    and kept as ``.acceleration`` of the new model: ``print(accelerate(model).acceleration)``, or
    ``.acceleration.to_dict()`` as data.

    Args:
        model: any model; it stays as it is, and the rest of the new one is a deep copy.
        dtype: of the new layers' weights; None: the layers' own. See ``SparseLinear``.
        memory: "fast" or "small"; see ``SparseLinear``.

    Raises:
        ValueError: a masked layer has hooks, which the new one would lose, or the model has an
            ``acceleration`` of its own.
    """
    own = getattr(model, "acceleration", Acceleration({}))
    if not isinstance(own, Acceleration):  # one of ours is replaced
        raise ValueError(
            "accelerate: model must have no attribute 'acceleration', which the new model says its"
            f" choices in, got one of type {type(own).__name__}; rename it"
        )
    layers: dict[str, Choice] = {}

    def convert(name: str, layer: nn.Module) -> nn.Module:
        sparse = SparseLinear.from_linear(layer, dtype=dtype, memory=memory)  # type: ignore[arg-type]
        layers[name or "(model)"] = sparse.choice
        return sparse

    result = _replaced(model, (MaskedLinear,), convert, "accelerate")
    result.acceleration = Acceleration(layers)  # type: ignore[assignment]
    _log.info("accelerate:\n%s", result.acceleration)
    return result


def strip(model: nn.Module) -> nn.Module:
    """A new model in which every masked or sparse layer is a plain ``nn.Linear`` with zeros.

    It needs nothing of this library: to export it, or to train all of its weights again.

    Args:
        model: any model; it stays as it is, and the rest of the new one is a deep copy.

    Raises:
        ValueError: a masked or sparse layer has hooks, which the new one would lose.
    """

    def convert(name: str, layer: nn.Module) -> nn.Module:
        return layer.to_dense()  # type: ignore[operator, no-any-return]

    return _replaced(model, (MaskedLinear, SparseLinear), convert, "strip")


def _replaced(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    convert: Callable[[str, nn.Module], nn.Module],
    caller: str,
) -> nn.Module:
    """A copy of the model with its layers of some kinds converted, a shared one once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    converted: dict[int, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
                raise ValueError(
                    f"{caller}: layer {name!r} must not have hooks, which the new layer would lose;"
                    " remove them first"
                )
            converted[id(layer)] = convert(name, layer)
    return copy.deepcopy(model, converted)

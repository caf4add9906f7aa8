"""What layers read, and by how much their outputs matter, summed up while a model runs.

Everything is taken at the moment when a layer runs: nothing of its input or output is kept, and
what follows may change them in place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arrangement import samples_first
from .convolved import Convolved
from .course import Wrapper, replaced
from .gram import Gram, affine_moments, joint_moments
from .layers import (
    has_own_forward,
    input_columns,
    is_affine,
    is_convolution,
    output_rows,
    weighted,
)
from .moments import Moments
from .recording import draw_positions


@dataclass
class _Sums:
    """Of a layer.

    Attributes:
        inputs: of its input columns; with its outputs behind them where these do not follow.
        affine: whether they do.
        columns: how many of these are inputs.
        gradients: of the likelihood's gradients with respect to its outputs.
    """

    inputs: Gram
    affine: bool
    columns: int
    gradients: Gram


class Gatherer:
    """Hooks on layers of a model, whose parameters want no gradients.

    Args:
        model: the network.
        means: layers whose input is to be had, at convolutions its mean over positions.
        summed: layers whose inputs, outputs and gradients are summed up.
        generator: draws positions.
        axes: layer -> the axis that samples lie along, where it is not the first; what is gathered
            has them first.
    """

    def __init__(
        self,
        model: nn.Module,
        means: Iterable[str],
        summed: Iterable[str],
        generator: torch.Generator,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        self._model, self._generator, self._axes = model, generator, axes or {}
        self._means, self._summed = dict.fromkeys(means), dict.fromkeys(summed)
        self._sums: dict[str, _Sums] = {}
        self._convolved: dict[str, Convolved] = {}
        self.inputs: dict[str, Tensor] = {}
        self.places = dict.fromkeys(self._means | self._summed, 0)

    @contextmanager
    def gathering(self, mask: Tensor | None, graded: bool) -> Iterator[None]:
        """Gathers during the block.

        Args:
            mask: [samples, tokens] that tells tokens from padding, or None.
            graded: whether ``backward`` will be called.
        """
        self.inputs.clear()
        hooks = [
            self._model.get_submodule(name).register_forward_hook(self._hook(name, mask, graded))
            for name in self.places
        ]
        try:
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(graded),
                replaced(self._model, dict(self._padding())),
            ):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def backward(self, likelihood: Tensor) -> None:
        """Adds the gradients of what was computed in the last block."""
        # To all that wants a gradient: where the model itself makes something want one, as with
        # gradient checkpointing, the layers behind it lie on no way to the first of the layers.
        if likelihood.requires_grad:
            likelihood.backward()  # type: ignore[no-untyped-call]

    def moments(self, name: str) -> Moments:
        """Of a layer's input columns and its outputs."""
        sums, weight = self._sums[name], self.weight(name)
        if weight is None:
            return joint_moments(sums.inputs, sums.columns)
        return affine_moments(sums.inputs, weight, weighted(self._model, name).bias)

    def weight(self, name: str) -> Tensor | None:
        """[outputs, columns] by which a layer makes its outputs, or None where it is not alone."""
        layer = weighted(self._model, name)
        return layer.weight.flatten(1) if self._sums[name].affine else None

    def fisher(self, name: str) -> Tensor:
        """[outputs, outputs] E[g g^T], g the gradient with respect to a layer's outputs."""
        gradients = self._sums[name].gradients
        return gradients.sums()[1] / max(gradients.rows, 1)

    def _padding(self) -> Iterator[tuple[str, Wrapper]]:
        """Convolutions that may pad in a forward function of their own, to be watched."""
        for name in self._summed:
            layer = self._model.get_submodule(name)
            if is_convolution(layer) and has_own_forward(layer):
                yield name, self._watching(name, layer)

    def _watching(self, name: str, layer: nn.Conv1d | nn.Conv2d) -> Wrapper:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                with Convolved(layer) as self._convolved[name]:
                    return original(*args, **options)

            return call

        return wrap

    def _hook(self, name: str, mask: Tensor | None, graded: bool) -> Any:
        axis = self._axes.get(name, 0)

        def gather(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            x, z = (samples_first(value.detach(), axis) for value in (args[0], out))
            if name in self._means and name not in self.inputs:
                self.inputs[name] = x.flatten(2).mean(2) if is_convolution(layer) else x.clone()
            self.places[name] += _count_places(layer, z, mask)
            if name not in self._summed:
                return None
            at = draw_positions(layer, z, self._generator, mask)
            sums = self._add(name, layer, x, z, at)
            if not graded:
                return None

            def add_gradient(gradient: Tensor) -> None:
                sums.gradients.add_(output_rows(layer, samples_first(gradient, axis), at))

            return self._watched(out, add_gradient)

        return gather

    def _add(self, name: str, layer: nn.Module, x: Tensor, z: Tensor, at: Tensor | None) -> _Sums:
        if name in self._convolved and at is not None:
            rows = self._convolved.pop(name).columns(name, x, z, at)
        else:
            rows = input_columns(layer, x, at)
        columns = rows.shape[1]
        # Hooks of the user's may change outputs; one is the gatherer's own.
        affine = is_affine(layer) and len(layer._forward_hooks) == 1
        if not affine:
            rows = torch.cat([rows, output_rows(layer, z, at)], 1)
        if name not in self._sums:
            outputs = z.shape[1] if is_convolution(layer) else z.shape[-1]
            self._sums[name] = _Sums(
                Gram(rows.shape[1], z.device, rows.dtype),
                affine,
                columns,
                Gram(outputs, z.device, z.dtype, centred=False),
            )
        self._sums[name].inputs.add_(rows)
        return self._sums[name]

    def _watched(self, z: Tensor, add: Callable[[Tensor], None]) -> Tensor:
        """The output, whose gradient will be added."""
        # Gradients are wanted no further back than to the first of the layers.
        if not z.requires_grad:
            z = z.detach().requires_grad_(True)
            z = z.clone()  # of a leaf nothing can be changed in place
        z.register_hook(add)  # type: ignore[no-untyped-call]
        return z


def _count_places(layer: nn.Module, z: Tensor, mask: Tensor | None) -> int:
    """Positions or tokens of a layer's output z, over all samples."""
    if is_convolution(layer):
        return z[:, 0].numel()
    count = z[..., 0].numel()
    return int(mask.sum()) if mask is not None and mask.numel() == count else count

"""Refits the layers that lost inputs, so that they say again what they said before.

From the first layer that lost inputs to the last, each is replaced by the ridge regression of
the original's pre-activations on the smaller network's own inputs (so that errors upstream are
corrected downstream, not added up); the last one then by the logistic regression of the
original's predictions.

A layer without a bias gets one from the BatchNorm behind it, whose running mean is then what suits
the smaller network. To take running statistics anew from the calibration data does harm: it undoes
the fit, and where these are not the data of training, all that the network knows.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .arrangement import sample_axes, samples_first, samples_of_rows
from .data import Batch, ForwardFn, batches, device_of, samples_of, to_device, token_mask
from .layers import input_columns, output_rows, weighted
from .moments import Moments
from .nn import MaskedLinear
from .norms import norms_behind
from .order import layers_together, output_layer
from .recording import draw_positions
from .resume import Resumed
from .ridge import regression

# Ridge of single weights' regressions, as a share of the inputs' mean variance.
RIDGE = {nn.Linear: 1e-3, nn.Conv1d: 1e-2, nn.Conv2d: 1e-2}

# Samples that do not fit but choose the ridge.
_HELD_OUT_EVERY = 4

# The logistic regression of the last layer: penalty per squared change of a weight, and steps.
_REFIT_PENALTY = 1e-5
_REFIT_STEPS = 100


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[Batch],
    history: Iterable[Mapping[str, Any]],
    *,
    samples: int,
    seed: int = 0,
    refit_outputs: bool = False,
    depth: int | None = None,
    forward_fn: ForwardFn | None = None,
) -> nn.Module:
    """A copy of the student whose layers reproduce the teacher's pre-activations.

    Args:
        student: the model that units were removed from.
        teacher: the original.
        data: calibration batches.
        history: what was removed; it says which of a layer's outputs are left.
        samples: most calibration samples to use.
        seed: of the positions of a convolution's output that are looked at.
        refit_outputs: whether the layer that makes the outputs is refitted to the teacher's
            predictions by KL divergence; a distillation that follows does that better.
        depth: how many layers, one behind the other, are refitted from the first that lost inputs
            on; None: all.
        forward_fn: as in ``score``.
    """
    student = deepcopy(student)
    kept = {(step["module"], step["axis"]): step["kept"] for step in history if "kept" in step}
    pair = Pair(student, deepcopy(teacher), data, samples, seed, forward_fn)
    together = layers_together(teacher, pair.example, forward_fn)
    order = [name for names in together for name in names]
    lost = [name for name in order if (name, "in") in kept]
    if not lost:
        return student
    norms = norms_behind(teacher, order, pair.example, forward_fn)
    first = next(i for i, names in enumerate(together) if lost[0] in names)
    for names in together[first:][:depth]:
        moments = pair.split_moments({name: kept.get((name, "out")) for name in names})
        for name in names:
            _refit(student, name, norms.get(name), moments[name])
    if refit_outputs and order[-1] == output_layer(student, pair.example, order, forward_fn):
        last = student.get_submodule(order[-1])
        assert isinstance(last, nn.Linear)
        refit_to_predictions(last, *pair.features(order[-1]))
    return student


def _refit(
    student: nn.Module, name: str, norm: str | None, moments: tuple[Moments, Moments]
) -> None:
    """Makes a layer the regression, whose bias may be that of the BatchNorm behind it."""
    layer = weighted(student, name)
    bias = layer.bias
    if bias is None and norm is not None:
        bias = layer.weight.new_zeros(len(layer.weight))
    weight, bias = regression(layer.weight.flatten(1), bias, *moments)
    layer.weight.data.copy_(weight.view(layer.weight.shape))
    if layer.bias is not None and bias is not None:
        layer.bias.data.copy_(bias)
    elif norm is not None:
        mean = student.get_submodule(norm).running_mean
        assert isinstance(mean, Tensor)
        assert bias is not None
        mean.sub_(bias)


# A batch, calls of layers in the student and in the teacher, the teacher's outputs.
_Calls = Mapping[str, list[tuple[Tensor, Tensor]]]
_Run = tuple[Batch, tuple[_Calls, _Calls], Tensor]


class Pair:
    """Student and teacher run side by side over the calibration data."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: Iterable[Batch],
        samples: int,
        seed: int,
        forward_fn: ForwardFn | None,
    ) -> None:
        self._student, self._seed, self._device = student, seed, device_of(teacher)
        self._data = list(batches(data, limit=samples, name="calibration"))
        self.example = next(iter(batches(self._data, device=self._device, limit=2)))
        self._axes = sample_axes(teacher, self.example, forward_fn)
        self._runs = [
            Resumed(model, self._data, self.example, self._device, forward_fn)
            for model in (student, teacher)
        ]

    def moments(self, layers: Mapping[str, list[int] | None]) -> dict[str, Moments]:
        """Of student layers' inputs with the outputs that are left of the teacher's layers.

        Args:
            layers: their names, each with the outputs that are left, or None for all.
        """
        return {name: a + b for name, (a, b) in self.split_moments(layers).items()}

    def split_moments(
        self, layers: Mapping[str, list[int] | None]
    ) -> dict[str, tuple[Moments, Moments]]:
        """``moments`` of the samples to fit on and of those held out, every fourth."""
        generators = {
            name: torch.Generator(self._device).manual_seed(self._seed) for name in layers
        }
        totals: dict[str, tuple[Moments, Moments]] = {}
        first = 0
        for batch, (student, teacher), _ in self._run(layers, to_the_end=False):
            samples = samples_of(batch)
            for name, kept in layers.items():
                layer, axis = self._student.get_submodule(name), self._axes.get(name, 0)
                for (x, _), (_, z) in zip(student[name], teacher[name], strict=True):
                    x, z = samples_first(x, axis), samples_first(z, axis)
                    at = draw_positions(layer, z, generators[name], token_mask(batch))
                    rows = output_rows(layer, z, at)
                    rows = rows if kept is None else rows[:, kept]
                    columns = input_columns(layer, x, at)
                    turn = (first + 1 + samples_of_rows(layer, z, at, samples)) % _HELD_OUT_EVERY
                    if name not in totals:
                        shape = columns.shape[1], rows.shape[1], z.device
                        totals[name] = Moments.zeros(*shape), Moments.zeros(*shape)
                    for part, chosen in zip(totals[name], (turn > 0, turn == 0), strict=True):
                        part.add_(columns[chosen], rows[chosen])
            first += samples
        return totals

    def features(self, name: str) -> tuple[Tensor, Tensor]:
        """The student layer's inputs [rows, inputs], and the teacher's predictions."""
        inputs, predictions = [], []
        for _, (student, _), outputs in self._run([name]):
            inputs.append(student[name][-1][0].flatten(0, -2))
            predictions.append(outputs.float().softmax(-1))
        return torch.cat(inputs), torch.cat(predictions)

    def _run(self, names: Iterable[str], *, to_the_end: bool = True) -> Iterator[_Run]:
        """Both models' calls of the layers for each batch, and the teacher's outputs.

        Unless it goes to the end, a forward pass stops after the layers, without outputs.
        """
        student, teacher = (run.run(names, to_the_end=to_the_end) for run in self._runs)
        for batch, (ours, _), (theirs, outputs) in zip(self._data, student, teacher, strict=True):
            yield to_device(batch, self._device), (ours, theirs), outputs


def refit_to_predictions(
    layer: nn.Linear | MaskedLinear, x: Tensor, predictions: Tensor, *, mask: Tensor | None = None
) -> None:
    """Logistic regression of the predictions on x [rows, inputs], from where the layer is.

    Weights outside the mask [outputs, inputs] do not count.
    """
    shift = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    start = [layer.weight.detach().float(), shift.detach().float()]
    free = [value.clone().requires_grad_(True) for value in start]
    # A layer without a bias is fitted without one.
    variables = free if layer.bias is not None else free[:1]
    optimizer = torch.optim.LBFGS(
        variables, max_iter=_REFIT_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )
    x, predictions = x.float(), predictions.float()

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight = free[0] if mask is None else free[0] * mask
        logits = x @ weight.T + free[1]
        cross_entropy = -(predictions * logits.log_softmax(-1)).sum(-1).mean()
        change = (free[0] - start[0]).square().sum()
        total = cross_entropy + _REFIT_PENALTY * change
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    layer.weight.data.copy_(free[0].detach())
    if layer.bias is not None:
        layer.bias.data.copy_(free[1].detach())

"""Refits the layers that lost inputs, so that they say again what they said before.

From the first layer that lost inputs to the last, each is replaced by the ridge regression of
the original's pre-activations on the smaller network's own inputs (so that errors upstream are
corrected downstream, not added up); the last one then by the logistic regression of the
original's predictions.

A layer without a bias gets one from the BatchNorm behind it, whose running mean is then what suits
the smaller network. To take running statistics anew from the calibration data does harm: it undoes
the fit, and where these are not the data of training, all that the network knows.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .arrangement import samples_first
from .data import Batch, to_device
from .errors import SimMIMError
from .forward import ForwardFn, mask_of, token_rows
from .layers import input_columns, weighted
from .moments import NormalEquations
from .nn import MaskedLinear
from .order import makes_outputs
from .original import Original
from .resume import Resumed
from .ridge import regression

# Ridge of single weights' regressions, as a share of the inputs' mean variance.
RIDGE = {nn.Linear: 1e-3, nn.Conv1d: 1e-2, nn.Conv2d: 1e-2}

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
    original = Original(deepcopy(teacher), data, samples=samples, seed=seed, forward_fn=forward_fn)
    runs = original.resumed(deepcopy(student))
    refit_(runs, original, history, refit_outputs=refit_outputs, depth=depth)
    return runs.model


def refit_(
    runs: Resumed,
    original: Original,
    history: Iterable[Mapping[str, Any]],
    *,
    refit_outputs: bool = False,
    depth: int | None = None,
) -> None:
    """``reconstruct`` in place, of a student that runs over the data of the original."""
    student, pair = runs.model, Pair(runs, original)
    kept = {(step["module"], step["axis"]): step["kept"] for step in history if "kept" in step}
    lost = [name for name in original.order if (name, "in") in kept]
    if not lost:
        return
    first = next(i for i, names in enumerate(original.together) if lost[0] in names)
    for names in original.together[first:][:depth]:
        sums = pair.split({name: kept.get((name, "out")) for name in names})
        for name in names:
            _refit(student, name, original.norms.get(name), sums[name])
    if not refit_outputs:
        return
    last = student.get_submodule(original.order[-1])
    if isinstance(last, nn.Linear):
        features = pair.features(original.order[-1])
        if features is not None:
            refit_to_predictions(last, *features)


def _refit(
    student: nn.Module, name: str, norm: str | None, sums: tuple[NormalEquations, NormalEquations]
) -> None:
    """Makes a layer the regression, whose bias may be that of the BatchNorm behind it."""
    layer = weighted(student, name)
    bias = layer.bias
    if bias is None and norm is not None:
        bias = layer.weight.new_zeros(len(layer.weight))
    weight, bias = regression(layer.weight.flatten(1), bias, *sums)
    layer.weight.data.copy_(weight.view(layer.weight.shape))
    if layer.bias is not None and bias is not None:
        layer.bias.data.copy_(bias)
    elif norm is not None:
        mean = student.get_submodule(norm).running_mean
        assert isinstance(mean, Tensor)
        assert bias is not None
        mean.sub_(bias)


class Pair:
    """Student and original run side by side over the calibration data.

    Args:
        runs: the student's over the original's data.
        original: the network that it came from.
    """

    def __init__(self, runs: Resumed, original: Original) -> None:
        self._runs, self._original = runs, original

    def whole(self, layers: Mapping[str, list[int] | None]) -> dict[str, NormalEquations]:
        """Of student layers' inputs with the outputs that are left of the original's layers.

        Args:
            layers: their names, each with the outputs that are left, or None for all.
        """
        return {name: a + b for name, (a, b) in self.split(layers).items()}

    def split(
        self, layers: Mapping[str, list[int] | None]
    ) -> dict[str, tuple[NormalEquations, NormalEquations]]:
        """``whole`` of the samples to fit on and of those held out, every fourth.

        Raises:
            SimMIMError: they are not finite.
        """
        totals: dict[str, tuple[NormalEquations, NormalEquations]] = {}
        runs = self._runs.inputs(layers)
        for calls, said in zip(runs, self._original.said(layers), strict=True):
            for name, kept in layers.items():
                layer = self._runs.model.get_submodule(name)
                for x, (at, z, held_out) in zip(calls[name], said[name], strict=True):
                    x = samples_first(x, self._original.axes.get(name, 0))
                    columns, rows = input_columns(layer, x, at), z if kept is None else z[:, kept]
                    if name not in totals:
                        shape = columns.shape[1], rows.shape[1], z.device
                        zeros = NormalEquations.zeros
                        totals[name] = zeros(*shape), zeros(*shape)
                    for part, chosen in zip(totals[name], (~held_out, held_out), strict=True):
                        part.add_(columns[chosen], rows[chosen])
        for name, parts in totals.items():
            if not all(part.finite() for part in parts):
                raise SimMIMError(
                    f"calibration: the inputs or outputs of {name!r} are not finite; check the "
                    "data and the weights"
                )
        return totals

    def features(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The student layer's inputs [rows, inputs], and the original's predictions of each.

        None where the layer's outputs are not the model's, or not all of them, as behind a
        ``forward_fn`` that leaves padding out.
        """
        original = self._original
        if not makes_outputs(self._runs.model, original.example, name, original.forward_fn):
            return None
        inputs = []
        for batch, calls in zip(original.data, self._runs.inputs([name]), strict=True):
            x = calls[name][-1]
            inputs.append(token_rows(x, mask_of(to_device(batch, x.device), original.forward_fn)))
        predictions = [x.float().softmax(-1) for x in original.predictions(name)]
        if any(len(x) != len(p) for x, p in zip(inputs, predictions, strict=True)):
            return None
        return torch.cat(inputs), torch.cat(predictions)


def refit_to_predictions(
    layer: nn.Linear | MaskedLinear, x: Tensor, predictions: Tensor, *, mask: Tensor | None = None
) -> None:
    """Logistic regression of the predictions on x [rows, inputs], from where the layer is.

    Weights outside the mask [outputs, inputs] do not count. Where x is so large that the search
    leaves the numbers, the layer stays as it is.
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
    if not all(torch.isfinite(value).all() for value in variables):
        return
    layer.weight.data.copy_(free[0].detach())
    if layer.bias is not None:
        layer.bias.data.copy_(free[1].detach())

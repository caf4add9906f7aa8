"""Calibration statistics: what units do and what the layers behind them make of it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .answers import PASS_BYTES, Answers
from .data import Batch, ForwardFn, batches, device_of, evaluating, forward, samples_of, token_mask
from .errors import SimMIMError
from .layers import input_columns, is_convolution, output_rows, weighted
from .moments import Moments
from .recording import Recorder, draw_positions
from .units import Member, UnitGroup

# A layer with more outputs (a language model's vocabulary) is asked only where no other reads the
# units: its outputs' second moments would be gigabytes.
MOST_OUTPUTS = 4096

# Samples that the Fisher information is taken from: each costs a backward pass.
FISHER_SAMPLES = 500


@dataclass(frozen=True)
class Predictions:
    """What the model says on the calibration data.

    Attributes:
        rows: [samples, classes] float32 probabilities; [samples, outputs] for values. Of a model
            that answers for each token, samples are tokens.
        noise: None for classes; for values the variance of the Gaussian noise they are seen
            through.
    """

    rows: Tensor
    noise: float | None = None


@dataclass
class LayerStatistics:
    """What one layer that reads units is told and says.

    Attributes:
        moments: of its input columns and its outputs.
        fisher: [outputs, outputs] E[g g^T], g the gradient of log p(y|x) with respect to the
            layer's outputs, y drawn from the model's own prediction.
        columns: [units * block] the group's input columns, those of each unit together; a layer
            behind a concatenation has others too.
        places: how many positions or tokens of the layer's output go into one answer of the
            model.
    """

    moments: Moments
    fisher: Tensor
    columns: Tensor
    places: float


@dataclass
class GroupStatistics:
    """Statistics of one group of units.

    Attributes:
        group: the group.
        activations: [samples, units] float32 of every unit as its first reader sees it: the mean
            over positions for a channel, the main direction of its channels for a head.
        readers: statistics of each layer that reads the units, by name.
    """

    group: UnitGroup
    activations: Tensor
    readers: dict[str, LayerStatistics] = field(default_factory=dict)


@dataclass
class _Layer:
    """What is summed up for a layer: moments, and g g^T of so many rows."""

    moments: Moments
    fisher: Tensor
    rows: int = 0


def collect(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    data: Iterable[Batch],
    *,
    samples: int,
    seed: int = 0,
    moments: bool = True,
    noise: float | None = None,
    forward_fn: ForwardFn | None = None,
) -> tuple[Predictions, Iterator[GroupStatistics]]:
    """Statistics of every group, in as few passes over the data as memory allows.

    Args:
        model: the network; works on a copy in eval mode.
        groups: its groups of units.
        data: calibration batches.
        samples: most samples to use.
        seed: of the labels drawn from the model's predictions and of the positions looked at.
        moments: whether to gather the readers' statistics too, which takes a backward pass.
        noise: None for a classifier; for values the variance of the outputs' Gaussian noise.
        forward_fn: as in ``score``.

    Returns:
        The predictions, and the groups' statistics one by one.
    """
    with torch.inference_mode(False):
        network = deepcopy(model)
    for parameter in network.parameters():
        parameter.requires_grad_(moments and parameter.is_floating_point())
    passes = list(_passes(network, groups, samples, moments))

    def run(part: Sequence[UnitGroup]) -> tuple[Predictions, list[GroupStatistics]]:
        return _collect_pass(network, part, data, samples, seed, moments, noise, forward_fn)

    predictions, first = run(passes[0] if passes else ())

    def statistics() -> Iterator[GroupStatistics]:
        nonlocal first
        yield from first
        first = []
        for part in passes[1:]:
            yield from run(part)[1]

    return predictions, statistics()


def _collect_pass(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    data: Iterable[Batch],
    samples: int,
    seed: int,
    moments: bool,
    noise: float | None,
    forward_fn: ForwardFn | None,
) -> tuple[Predictions, list[GroupStatistics]]:
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    readers = {m.module: m for group in groups for m in (group.readers[0], *_readers(model, group))}
    recorder = Recorder(model, readers)
    layers: dict[str, _Layer] = {}
    places = dict.fromkeys(readers, 0)
    answered, seen_samples = 0, 0
    activations: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    directions: dict[str, Tensor] = {}
    rows = []
    for batch in batches(data, device=device, limit=samples, name="calibration"):
        graded = moments and seen_samples < FISHER_SAMPLES
        seen_samples += samples_of(batch)
        with evaluating(model), recorder.recording(), _gradients(graded):
            outputs = forward(model, batch, forward_fn).float()
        if not torch.isfinite(outputs).all():
            raise SimMIMError(
                "calibration: the model's outputs are not finite; check the data and the weights"
            )
        answers = Answers(outputs, batch, samples, generator)
        seen = answers.of_outputs(outputs.detach())
        rows.append(seen.softmax(-1) if noise is None else seen)
        for group in groups:
            x = _by_channel(model, group, recorder, answers)
            activations[group.name].append(_by_unit(group, x, directions))
        answered += len(outputs)
        for name, calls in recorder.calls.items():
            layer = model.get_submodule(name)
            places[name] += sum(_count_places(layer, z, token_mask(batch)) for _, z in calls)
        if moments:
            likelihood = _log_likelihood(outputs, noise, generator) if graded else None
            _add_moments(model, recorder, layers, likelihood, generator, token_mask(batch))
    return Predictions(torch.cat(rows), noise), [
        GroupStatistics(
            group,
            torch.cat(activations[group.name]),
            {
                m.module: _reader(model, m, layers, places[m.module] / answered)
                for m in _readers(model, group)
            }
            if moments
            else {},
        )
        for group in groups
    ]


def _readers(model: nn.Module, group: UnitGroup) -> tuple[Member, ...]:
    """The layers that the group's units are judged by."""
    found = tuple(
        member
        for member in group.readers
        if len(weighted(model, member.module).weight) <= MOST_OUTPUTS
    )
    return found or group.readers[:1]


@contextmanager
def _gradients(enabled: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


def _by_channel(model: nn.Module, group: UnitGroup, recorder: Recorder, answers: Answers) -> Tensor:
    """[samples, columns] inputs of the group's first reader that are its units', unit by unit."""
    reader = group.readers[0]
    x = recorder.calls[reader.module][0][0]
    if is_convolution(model.get_submodule(reader.module)):
        x = x.flatten(2).mean(2)
    order = sorted(range(len(reader.units)), key=reader.units.__getitem__)
    return answers.of_inputs(x)[:, [reader.indices[i] for i in order]].float()


def _by_unit(group: UnitGroup, x: Tensor, directions: dict[str, Tensor]) -> Tensor:
    """One number for each unit: its channels' main direction, found in the first batch."""
    x = x.view(len(x), group.units, -1)
    if group.channels == 1:  # what it has several columns of are positions
        return x.mean(2)
    if group.name not in directions:
        centred = (x - x.mean(0)).double()
        directions[group.name] = (
            torch.linalg.eigh(torch.einsum("nuc,nud->ucd", centred, centred))
            .eigenvectors[..., -1]
            .float()
        )
    return torch.einsum("nuc,uc->nu", x, directions[group.name])


def _log_likelihood(outputs: Tensor, noise: float | None, generator: torch.Generator) -> Tensor:
    """Sum of log p(y|x) over samples, y drawn from the model; its gradient is what counts."""
    if noise is None:
        drawn = torch.multinomial(outputs.detach().softmax(-1), 1, generator=generator)
        return outputs.log_softmax(-1).gather(1, drawn).sum()
    drawn = torch.randn(outputs.shape, generator=generator, device=outputs.device)
    scale: float = noise**-0.5
    return scale * (outputs * drawn).sum()


def _add_moments(
    model: nn.Module,
    recorder: Recorder,
    layers: dict[str, _Layer],
    likelihood: Tensor | None,
    generator: torch.Generator,
    mask: Tensor | None,
) -> None:
    """Adds a batch; to the Fisher information too where its likelihood is given."""
    outputs = [z for calls in recorder.calls.values() for _, z in calls]
    gradients = iter(() if likelihood is None else torch.autograd.grad(likelihood, outputs))
    for name, calls in recorder.calls.items():
        layer = model.get_submodule(name)
        for x, z in calls:
            at = draw_positions(layer, z, generator, mask)
            rows = output_rows(layer, z.detach(), at)
            columns = input_columns(layer, x, at)
            if name not in layers:
                size = rows.shape[1]
                zero = torch.zeros(size, size, dtype=torch.float64, device=z.device)
                layers[name] = _Layer(Moments.zeros(columns.shape[1], size, z.device), zero)
            layers[name].moments.add_(columns, rows)
            if likelihood is not None:
                gradient = output_rows(layer, next(gradients), at).double()
                layers[name].fisher.addmm_(gradient.T, gradient)
                layers[name].rows += len(gradient)


def _count_places(layer: nn.Module, z: Tensor, mask: Tensor | None) -> int:
    """Positions or tokens of a layer's output z, over all samples."""
    if is_convolution(layer):
        return z[:, 0].numel()
    count = z[..., 0].numel()
    return int(mask.sum()) if mask is not None and mask.numel() == count else count


def _reader(
    model: nn.Module, member: Member, layers: dict[str, _Layer], places: float
) -> LayerStatistics:
    layer = layers[member.module]
    kernel = weighted(model, member.module).weight[0, 0].numel()
    order = sorted(range(len(member.units)), key=member.units.__getitem__)
    first = torch.tensor([member.indices[i] * kernel for i in order], device=layer.fisher.device)
    columns = (first[:, None] + torch.arange(kernel, device=first.device)).flatten()
    return LayerStatistics(layer.moments, layer.fisher / layer.rows, columns, places)


def _passes(
    model: nn.Module, groups: Sequence[UnitGroup], samples: int, moments: bool
) -> Iterator[list[UnitGroup]]:
    """Splits the groups so that what one pass gathers fits into PASS_BYTES, where it can."""
    part: list[UnitGroup] = []
    used = 0
    for group in groups:
        if not group.readers:
            raise SimMIMError(
                f"collect: no layer reads all units of {group.name!r}; put it in ignored_layers"
            )
        size = 4 * samples * group.units
        for member in _readers(model, group) if moments else ():
            outputs, columns = weighted(model, member.module).weight.flatten(1).shape
            size += 8 * (columns**2 + 2 * outputs**2 + columns * outputs)
        if part and used + size > PASS_BYTES:
            yield part
            part, used = [], 0
        part.append(group)
        used += size
    if part:
        yield part

"""Calibration statistics: what units do and what the layers behind them make of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .answers import PASS_BYTES, Answers
from .arrangement import sample_axes
from .data import Batch, batches, map_tensors, samples_of, token_mask
from .errors import SimMIMError, about
from .forward import ForwardFn, forward
from .gathering import Gatherer
from .gram import CHUNK
from .layers import weighted
from .memory_format import fastest_format
from .modes import device_of, evaluating
from .moments import Moments
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
        weight: [outputs, columns] by which the outputs follow from all input columns, but for a
            constant; None where they do not.
    """

    moments: Moments
    fisher: Tensor
    columns: Tensor
    places: float
    weight: Tensor | None


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
    name: str = "calibration",
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
        name: how errors name the data.

    Returns:
        The predictions, and the groups' statistics one by one.

    Raises:
        SimMIMError: the data is a single sample, or outputs of it are not finite.
    """
    with torch.inference_mode(False):
        network = deepcopy(model)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    few = next(iter(batches(data, device=device_of(network), limit=2, name=name)))
    if device_of(network).type == "cpu":
        network = fastest_format(network, few, forward_fn)
    axes = sample_axes(network, few, forward_fn)
    passes = list(_passes(network, groups, samples, moments))

    def run(part: Sequence[UnitGroup]) -> tuple[Predictions, Iterator[GroupStatistics]]:
        return _collect_pass(
            network, part, data, samples, seed, moments, noise, forward_fn, axes, name
        )

    predictions, first = run(passes[0] if passes else ())
    if len(predictions.rows) < 2:
        raise SimMIMError(f"{name}: at least 2 samples are needed, got 1; give more")

    def statistics() -> Iterator[GroupStatistics]:
        yield from first
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
    axes: Mapping[str, int],
    name: str,
) -> tuple[Predictions, Iterator[GroupStatistics]]:
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    summed = [m.module for group in groups for m in _readers(model, group)] if moments else []
    firsts = [group.readers[0].module for group in groups]
    gatherer = Gatherer(model, firsts, summed, generator, axes)
    answered, seen_samples = 0, 0
    activations: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    directions: dict[str, Tensor] = {}
    rows = []
    for batch in batches(data, device=device, limit=samples, name=name):
        batch = map_tensors(batch, torch.Tensor.detach)
        graded = moments and seen_samples < FISHER_SAMPLES
        seen_samples += samples_of(batch)
        with evaluating(model), gatherer.gathering(token_mask(batch), graded):
            with about(name):
                outputs = forward(model, batch, forward_fn).float()
            if not torch.isfinite(outputs).all():
                raise SimMIMError(
                    f"{name}: the model's outputs are not finite; check the data and the weights"
                )
            if graded:
                gatherer.backward(_log_likelihood(outputs, noise, generator))
        outputs = outputs.detach()
        answers = Answers(outputs, batch, samples, generator)
        seen = answers.of_outputs(outputs)
        rows.append(seen.softmax(-1) if noise is None else seen)
        for group in groups:
            x = _by_channel(group, gatherer, answers)
            activations[group.name].append(_by_unit(group, x, directions))
        answered += len(outputs)

    def statistics() -> Iterator[GroupStatistics]:
        for group in groups:
            found = {
                m.module: _reader(model, m, gatherer, answered)
                for m in (_readers(model, group) if moments else ())
            }
            yield GroupStatistics(group, torch.cat(activations.pop(group.name)), found)

    return Predictions(torch.cat(rows), noise), statistics()


def _readers(model: nn.Module, group: UnitGroup) -> tuple[Member, ...]:
    """The layers that the group's units are judged by."""
    found = tuple(
        member
        for member in group.readers
        if len(weighted(model, member.module).weight) <= MOST_OUTPUTS
    )
    return found or group.readers[:1]


def _by_channel(group: UnitGroup, gatherer: Gatherer, answers: Answers) -> Tensor:
    """[samples, columns] inputs of the group's first reader that are its units', unit by unit."""
    reader = group.readers[0]
    x = gatherer.inputs[reader.module]
    order = sorted(range(len(reader.units)), key=reader.units.__getitem__)
    return answers.of_inputs(x, group.name)[:, [reader.indices[i] for i in order]].float()


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


def _reader(model: nn.Module, member: Member, gatherer: Gatherer, answered: int) -> LayerStatistics:
    name = member.module
    kernel = weighted(model, name).weight[0, 0].numel()
    order = sorted(range(len(member.units)), key=member.units.__getitem__)
    fisher = gatherer.fisher(name)
    first = torch.tensor([member.indices[i] * kernel for i in order], device=fisher.device)
    columns = (first[:, None] + torch.arange(kernel, device=first.device)).flatten()
    places = gatherer.places[name] / answered
    return LayerStatistics(gatherer.moments(name), fisher, columns, places, gatherer.weight(name))


def _passes(
    model: nn.Module, groups: Sequence[UnitGroup], samples: int, moments: bool
) -> Iterator[list[UnitGroup]]:
    """Splits the groups so that what one pass gathers fits into PASS_BYTES, where it can."""
    part: list[UnitGroup] = []
    used = 0
    if unread := [repr(group.name) for group in groups if not group.readers]:
        raise SimMIMError(
            f"collect: no layer reads all units of {', '.join(unread)}, as happens where they are "
            "split among several or gate each other (GLU); put all of these in ignored_layers"
        )
    for group in groups:
        size = 4 * samples * group.units
        for member in _readers(model, group) if moments else ():
            outputs, columns = weighted(model, member.module).weight.flatten(1).shape
            size += 8 * (columns**2 + outputs**2) + 4 * CHUNK * (columns + outputs)
        if part and used + size > PASS_BYTES:
            yield part
            part, used = [], 0
        part.append(group)
        used += size
    if part:
        yield part

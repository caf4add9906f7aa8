"""Scores units: which of a layer's units to keep the longest."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .arguments import (
    check_dense,
    check_device,
    check_example,
    check_model,
    check_options,
    watched,
)
from .collect import collect
from .config import CompressConfig
from .conversion import prepared
from .criteria import CRITERIA, unit_entropy, unit_information
from .data import Batch, batches, gather, take
from .errors import SimMIMError, in_own_name, warn
from .forward import ForwardFn
from .graph import trace_units
from .inputs import inputs_kept
from .modes import device_of, seeded
from .names import names_of
from .outputs import noise_variance, resolve_output
from .ranking import Setting
from .shown import listed, score_lines
from .units import UnitGroup

_FEW_SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Tensor]):
    """Scores of every prunable layer's units: a mapping of layer name to [units] float32.

    Attributes:
        by_layer: the scores; a higher one is kept longer.
        order: layer name -> unit indices in the order in which they are kept.
        information: layer name -> [units] I(T; Yhat) in nats, from histograms: what each unit
            says by itself about the model's predictions. Sets the layers' widths.
        criterion: the name of the criterion.
        groups: the units that belong together, by layer.
        example: a batch of the model's inputs.
        divergence: layer name -> [units + 1] KL in nats to expect of a model that keeps the first
            k of the order in this layer alone, and is reconstructed; of "simmim" only, else empty.
        entropy: layer name -> [units] H(T) in nats, of the same histograms as ``information``.
    """

    by_layer: Mapping[str, Tensor]
    order: Mapping[str, tuple[int, ...]]
    information: Mapping[str, Tensor]
    criterion: str
    groups: tuple[UnitGroup, ...]
    example: Batch
    divergence: Mapping[str, Tensor] = field(default_factory=dict)
    entropy: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return listed(f"Scores by {self.criterion!r}", score_lines(self.by_layer))

    def __getitem__(self, layer: str) -> Tensor:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)


@in_own_name
def score(
    model: nn.Module,
    calibration: Iterable[Batch],
    *,
    example_inputs: Batch | None = None,
    criterion: str | None = None,
    config: CompressConfig | None = None,
    output: str = "auto",
    ignored_layers: Iterable[str | nn.Module] = (),
    forward_fn: ForwardFn | None = None,
) -> Scores:
    """Scores every unit of every prunable layer.

    Args:
        model: the network; it is not changed.
        calibration: a re-iterable of batches, without need of labels; about 1,000 samples or
            more, of which the first ``config.calibration_samples`` are kept in memory.
        example_inputs: a batch to trace the model with; default the first of calibration.
        criterion: "simmim" (information about the next layer's pre-activations given the units
            already kept, in the metric of the model's predictions); from histograms "entropy",
            "relevance", "redundancy", "mrmr", "jmi", "cmim"; by torch-pruning "magnitude_l1",
            "magnitude_l2", "fpgm", "taylor", "hessian", "activation"; or "random". Default
            ``config.criterion``.
        config: bins, samples and seed; default ``CompressConfig()``.
        output: "classes", "values", "embeddings" or "auto", see ``compress``.
        ignored_layers: layers that keep their outputs, see ``compress``.
        forward_fn: ``forward_fn(model, batch)`` returning outputs [samples, classes], where the
            model's own do not serve.

    Returns:
        The scores of all layers.

    Raises:
        ValueError: an unknown criterion, or a ``config.device`` that the model is not on.
        SimMIMError: nothing can be pruned, a score is not finite, or the calibration data or the
            model do not serve.
    """
    check_model("score", model)
    check_options("score", config=config, forward_fn=forward_fn, ignored_layers=ignored_layers)
    check_example("score", example_inputs)
    config = config or CompressConfig()
    check_device("score", model, config)
    criterion = config.criterion if criterion is None else criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ValueError(
            f"score: criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}"
        )
    device, ignored = device_of(model), names_of(model, ignored_layers)
    model, _ = prepared(watched("score", model), ignored)
    with seeded(config.seed, device=device), inputs_kept():
        samples = gather(calibration, config.calibration_samples)
        first = next(batches(samples, device=device))
        if example_inputs is None:
            example_inputs = first
        output = resolve_output(output, model, first, forward_fn)
        noise = None if output == "classes" else noise_variance(model, samples, forward_fn)
        groups = trace_units(
            model,
            take(example_inputs, slice(0, 1)),
            ignored_layers=ignored,
            forward_fn=forward_fn,
        )
        return score_groups(
            model,
            groups,
            samples,
            criterion=criterion,
            config=config,
            example=example_inputs,
            noise=noise,
            forward_fn=forward_fn,
        )


def score_groups(
    model: nn.Module,
    groups: tuple[UnitGroup, ...],
    calibration: Iterable[Batch],
    *,
    criterion: str = "simmim",
    config: CompressConfig | None = None,
    example: Batch | None = None,
    noise: float | None = None,
    forward_fn: ForwardFn | None = None,
) -> Scores:
    """``score`` for groups that were traced already.

    ``example`` defaults to the first batch. ``noise`` is None for a classifier, and for values the
    variance of the Gaussian noise that their outputs are seen through. Everything else is as in
    ``score``.
    """
    config = config or CompressConfig()
    if not groups:
        check_dense("score", model)
        raise SimMIMError(
            "score: the model has no units that can be removed; ignore fewer layers, or give a "
            "model with a Linear, Conv1d or Conv2d that another layer reads"
        )
    predictions, statistics = collect(
        model,
        groups,
        calibration,
        samples=config.calibration_samples,
        seed=config.seed,
        moments=criterion == "simmim",
        noise=noise,
        forward_fn=forward_fn,
    )
    samples = len(predictions.rows)
    if samples < _FEW_SAMPLES:
        warn(
            f"score: {samples} calibration samples are few; give at least {_FEW_SAMPLES}, and "
            "a quarter more where compress holds some out, as it does without evaluate"
        )
    setting = Setting(model, groups, calibration, predictions, config, forward_fn)
    rank = CRITERIA[criterion](setting)
    values: dict[str, Tensor] = {}
    order: dict[str, tuple[int, ...]] = {}
    information: dict[str, Tensor] = {}
    divergence: dict[str, Tensor] = {}
    entropy: dict[str, Tensor] = {}
    for stats in statistics:
        name = stats.group.name
        if not torch.isfinite(stats.activations).all():
            raise SimMIMError(
                f"score: activations of {name!r} are not finite; check data and weights"
            )
        for reader, read in stats.readers.items():
            if not read.moments.finite() or not torch.isfinite(read.fisher).all():
                raise SimMIMError(
                    f"score: the inputs or outputs of {reader!r}, their products or the gradients "
                    "of the predictions there are not finite; scale the data, or check the weights"
                )
        ranking = rank(stats)
        if not torch.isfinite(ranking.scores).all():
            raise SimMIMError(f"score: the {criterion} scores of {name!r} are not finite")
        values[name], order[name] = ranking.scores, ranking.order
        information[name] = unit_information(stats.activations, predictions, config).cpu()
        entropy[name] = unit_entropy(stats.activations, config).cpu()
        if ranking.divergence is not None:
            divergence[name] = ranking.divergence
    if example is None:
        example = next(iter(batches(calibration, device=device_of(model))))
    return Scores(values, order, information, criterion, groups, example, divergence, entropy)

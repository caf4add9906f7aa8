"""Prunes a scored model; nothing is trained."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .arguments import check_device, check_example, check_model, check_options, watched
from .assessment import assess, versions
from .budget import PER_LAYER, plain_numbers
from .config import CompressConfig
from .conversion import prepared, restored
from .data import Batch, gather, split
from .equivalence import proved_removal
from .errors import in_own_name
from .fidelity import check_comparable
from .fitting import fitting
from .forward import ForwardFn
from .inputs import inputs_kept
from .measure import count_bytes, count_flops, count_params
from .modes import seeded
from .names import names_of
from .outputs import noise_variance, resolve_output
from .plan import Plan, check_reachable, make_plan
from .progress import stage
from .reconstruction import reconstruct
from .removal import History
from .result import CompressionResult
from .scoring import Scores
from .storage import Json, signature_of
from .trials import measured

# What they were scored on is not known here.
_HELD_OUT = "calibration samples that reconstruction did not see"

# Figures of both models for which there must be data.
_OF_DATA = ("latency_ms", "predictive_information", "accuracy", "calibration_error")


@in_own_name
def prune(
    model: nn.Module,
    scores: Scores | Mapping[str, Tensor],
    *,
    constraints: Mapping[str, Any],
    calibration: Iterable[Batch] | None = None,
    example_inputs: Batch | None = None,
    ignored_layers: Iterable[str | nn.Module] = (),
    round_to: int = 1,
    output: str = "auto",
    forward_fn: ForwardFn | None = None,
    config: CompressConfig | None = None,
) -> CompressionResult:
    """Removes the units with the lowest scores until the constraints are met.

    Args:
        model: the network that was scored; it is not changed.
        scores: from ``score``, or any mapping of layer name to [units] scores, higher kept
            longer, for which ``example_inputs`` must be given and ``config.allocation`` must be
            "score" or "uniform".
        constraints: "units", "params", "flops", "bytes" or "latency" to a fraction kept in
            (0, 1], of which 1 is all, or to an integer > 1, a count (of latency there is none).
            Each is a ceiling.
        calibration: batches on which the layers behind removed units are refitted (unless
            ``config.reconstruct`` is False), on which it is measured what each layer's units are
            worth and, on a fifth that this leaves out, the models are compared; without it none of
            that is done. Where ``score`` saw them, it saw that fifth too.
        example_inputs: a batch; default the one that was scored with.
        ignored_layers: layers, their names or patterns of names, that keep their outputs.
        round_to: widths become multiples of it, or stay whole.
        output: what the outputs are, see ``compress``; it matters with calibration only.
        forward_fn: ``forward_fn(model, batch)`` returning outputs [samples, classes], where the
            model's own do not serve.
        config: allocation, reconstruction, samples and seed.

    Returns:
        The smaller model, its report and history. Without calibration "fidelity" and "latency" are
        None, as are the figures of both models that need data.

    Raises:
        ValueError: a constraint or an option that is none, or a ``config.device`` that the model
            is not on.
        SimMIMError: scores that do not fit the model, a budget that cannot be met, or a removal
            that would change more than the removed units.
    """
    check_model("prune", model)
    check_options("prune", config=config, forward_fn=forward_fn, ignored_layers=ignored_layers)
    check_example("prune", example_inputs)
    if not isinstance(scores, Mapping):
        raise TypeError(
            "prune: scores must be what score() returned, or a mapping of layer name to [units], "
            f"got {type(scores).__name__}"
        )
    config = config or CompressConfig()
    check_device("prune", model, config)
    constraints, round_to = plain_numbers(constraints), plain_numbers(round_to)
    with seeded(config.seed), inputs_kept():  # and independent of the caller's inference mode
        ignored = names_of(model, ignored_layers)
        original = watched("prune", model)
        model, converted = prepared(original, ignored)
        scores = fitting(model, scores, example_inputs, ignored, config, forward_fn)
        fit: list[Batch] = []
        held_out: list[Batch] = []
        stages: list[Json] = []
        noise: float | None = None
        if calibration is not None:
            check_reachable(
                model,
                scores.groups,
                constraints,
                scores.example,
                round_to=round_to,
                forward_fn=forward_fn,
            )
            fit, held_out = split(gather(calibration, config.calibration_samples))
            resolved = resolve_output(output, model, fit[0], forward_fn)
            noise = None if resolved == "classes" else noise_variance(model, fit, forward_fn)
            check_comparable(model, held_out, noise=noise, forward_fn=forward_fn, name=_HELD_OUT)
            if config.allocation == "information" and set(constraints) - {PER_LAYER}:
                with stage(stages, "measure", False):
                    scores = measured(
                        scores,
                        model,
                        fit,
                        reconstructed=config.reconstruct,
                        noise=noise,
                        seed=config.seed,
                        forward_fn=forward_fn,
                    )
        with stage(stages, "prune", False):
            plan, student, history = prune_units(
                model,
                scores,
                constraints,
                allocation=config.allocation,
                round_to=round_to,
                forward_fn=forward_fn,
            )
        if calibration is not None and config.reconstruct:
            with stage(stages, "reconstruct", False):
                student = reconstruct(
                    student,
                    model,
                    fit,
                    history,
                    samples=config.calibration_samples,
                    seed=config.seed,
                    refit_outputs=noise is None,
                    forward_fn=forward_fn,
                )
        student, back = restored(student, original, converted)
        report: dict[str, Any]
        if calibration is None:
            report = {"teacher": _costs(original, scores.example, forward_fn)}
            report |= {"student": _costs(student, scores.example, forward_fn)}
            report |= {"fidelity": None, "latency": None}
        else:
            with stage(stages, "compare", False):
                report = assess(
                    original,
                    student,
                    held_out,
                    scores.example,
                    name=_HELD_OUT,
                    noise=noise,
                    forward_fn=forward_fn,
                    seed=config.seed,
                )
    report |= {
        "layers": plan.layers,
        "stages": stages,
        "config": config.to_dict(),
        "constraints": dict(constraints),
        "versions": versions(),
    }
    return CompressionResult(student, report, [*converted, *history, *back], signature_of(original))


def prune_units(
    model: nn.Module,
    scores: Scores,
    constraints: Mapping[str, Any],
    *,
    allocation: str = "information",
    round_to: int = 1,
    trained: bool = False,
    forward_fn: ForwardFn | None = None,
) -> tuple[Plan, nn.Module, History]:
    """Plans, removes, and proves that nothing but the planned units was removed.

    ``trained`` says that the student will be, whatever mode the model is in.
    """
    plan = make_plan(
        model,
        scores,
        constraints,
        scores.example,
        allocation=allocation,
        round_to=round_to,
        forward_fn=forward_fn,
    )
    student, history = proved_removal(
        model, scores.groups, plan.kept, scores.example, trained=trained, forward_fn=forward_fn
    )
    return plan, student, history


def _costs(model: nn.Module, example: Batch, forward_fn: ForwardFn | None) -> dict[str, Any]:
    return {
        "params": count_params(model),
        "flops": count_flops(model, example, forward_fn),
        "bytes": count_bytes(model),
        **dict.fromkeys(_OF_DATA),
    }

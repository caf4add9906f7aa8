"""The whole road: score, prune, reconstruct, distil, compare; in steps that survive a kill."""

import copy
from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import nn

from .arguments import as_path, check_model, check_options
from .assessment import assess, versions
from .checkpoint import Checkpoint, identity_of
from .config import CompressConfig
from .conversion import prepared, restored
from .data import Batch, ForwardFn, Shuffled, check_reiterable, device_of, gather, seeded, split
from .graph import names_of
from .outputs import check_output, noise_variance, resolve_output
from .result import CompressionResult
from .stages import Run, stage
from .storage import signature_of
from .widths import check_constraints

GRANULARITIES = ("unit", "weight")
_HELD_OUT = "held-out calibration samples"


def compress(
    model: nn.Module,
    *,
    calibration: Iterable[Batch],
    train: Iterable[Batch] | None = None,
    evaluate: Iterable[Batch] | None = None,
    example_inputs: Batch | None = None,
    constraints: Mapping[str, float | int],
    granularity: str = "unit",
    output: str = "auto",
    ignored_layers: Iterable[str | nn.Module] = (),
    round_to: int = 1,
    forward_fn: ForwardFn | None = None,
    config: CompressConfig = CompressConfig(),  # noqa: B008  (frozen)
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> CompressionResult:
    """Compresses a trained model: keeps the units that carry information, then distils.

    The caller's model, its gradients and modes, and torch's random state are left as they are,
    also by an exception or Ctrl-C.

    Args:
        model: the trained network.
        calibration: re-iterable of batches; the first ``config.calibration_samples`` are kept in
            memory. Labels, where they come, serve accuracy only.
        train: batches to distil on; None: the calibration samples.
        evaluate: batches to compare the models on; None: a fifth of the calibration samples, which
            then no stage sees, provided that ``train`` does not repeat them.
        example_inputs: batch to trace with and to measure latency on; None: calibration's first.
        constraints: "units", "params", "flops", "bytes" or "latency", each a fraction kept in
            (0, 1] or, for counts, an integer > 1; all of them are ceilings. For weights it is
            "sparsity", the fraction of them that is removed.
        granularity: "unit" removes neurons and channels; "weight" single weights of Linear layers,
            which become ``simmim_ext.nn.MaskedLinear``.
        output: "classes", "values", "embeddings" or "auto", see ``resolve_output``.
        ignored_layers: layers, their names or patterns of names ("encoder.layer.0.*"), that keep
            their outputs.
        round_to: widths become multiples of it.
        forward_fn: ``forward_fn(model, batch) -> [samples, outputs]`` where the model's forward
            gives something else.
        config: everything else.
        checkpoint_dir: folder that keeps the state of the run; the same call goes on from there
            after a kill and ends with the same model, if the loaders are deterministic or draw
            from torch's global generator.
        progress: show progress where standard error is a terminal.

    Returns:
        The compressed model, on the original's device and in its modes, with its report.

    Raises:
        ValueError, TypeError: an argument that can't be meant.
        SimMIMError: data, model, budget or folder that can't serve; the message says what to do.
    """
    check_model("compress", model)
    check_options("compress", config=config, forward_fn=forward_fn, ignored_layers=ignored_layers)
    if checkpoint_dir is not None:
        checkpoint_dir = as_path("compress", checkpoint_dir, "checkpoint_dir")
    _check_budget(granularity, constraints, config)
    check_output(output)
    for name, data in (("calibration", calibration), ("train", train), ("evaluate", evaluate)):
        if data is not None:
            check_reiterable(data, name)
    device = device_of(model) if config.device is None else torch.device(config.device)
    ignored = names_of(model, ignored_layers)
    with seeded(config.seed, device=device):
        teacher = copy.deepcopy(model).to(device)
        worked_on, converted = prepared(teacher, ignored)
        samples = gather(calibration, config.calibration_samples)
        fit, seen_last = split(samples) if evaluate is None else (samples, evaluate)
        example = samples[0] if example_inputs is None else example_inputs
        resolved = resolve_output(output, teacher, samples[0], forward_fn)
        run = Run(
            teacher=worked_on,
            fit=fit,
            train=Shuffled(fit) if train is None else train,
            example=example,
            constraints=dict(constraints),
            granularity=granularity,
            ignored=ignored,
            round_to=round_to,
            noise=None if resolved == "classes" else noise_variance(teacher, fit, forward_fn),
            forward_fn=forward_fn,
            config=config,
            progress=progress,
        )
        settings = {
            "config": config.to_dict(),
            "constraints": dict(constraints),
            "granularity": granularity,
            "output": resolved,
            "ignored_layers": sorted(ignored),
            "round_to": round_to,
        }
        identity = "" if checkpoint_dir is None else identity_of(teacher, samples, settings)
        student, state = run.go(Checkpoint(checkpoint_dir, identity))
        student, back = restored(student, teacher, converted)
        with stage(state.stages, "compare", progress):
            figures = assess(
                teacher,
                student,
                seen_last,
                example,
                name=_HELD_OUT if evaluate is None else "evaluate",
                noise=run.noise,
                forward_fn=forward_fn,
                seed=config.seed,
            )
    report = {
        **figures,
        **settings,
        "layers": state.layers,
        "stages": state.stages,
        "training": state.training,
        "versions": versions(),
    }
    return CompressionResult(
        student.to(device_of(model)),
        report,
        [*converted, *state.history, *back],
        signature_of(model),
    )


def _check_budget(
    granularity: str, constraints: Mapping[str, float | int], config: CompressConfig
) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"compress: granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}"
        )
    if granularity == "unit":
        check_constraints(constraints)
        return
    sparsity = constraints.get("sparsity") if isinstance(constraints, Mapping) else None
    if (
        not isinstance(constraints, Mapping)
        or set(constraints) != {"sparsity"}
        or not isinstance(sparsity, float)
        or not 0 < sparsity < 1
    ):
        raise ValueError(
            'compress: with granularity="weight" constraints must be {"sparsity": fraction of '
            f"weights removed, in (0, 1)}}, got {constraints!r}"
        )
    if config.steps > 1:
        raise ValueError(
            f'compress: granularity="weight" needs schedule="one-shot", got {config.schedule!r}'
        )

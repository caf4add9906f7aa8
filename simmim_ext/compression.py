"""The whole road: score, prune, reconstruct, distil, compare; in steps that survive a kill."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from .arguments import (
    as_path,
    check_dense,
    check_example,
    check_gradients,
    check_model,
    check_options,
    check_trainable,
    copied,
)
from .assessment import assess, versions
from .budget import check_budget, plain_numbers
from .checkpoint import Checkpoint, answers_of, identity_of
from .config import CompressConfig
from .conversion import prepared, restored
from .data import Batch, Shuffled, check_reiterable, gather, split, take
from .errors import in_own_name
from .fidelity import check_comparable
from .forward import ForwardFn
from .granularity import Granularity
from .inputs import inputs_kept
from .modes import device_of, seeded
from .names import names_of
from .outputs import check_output, noise_variance, resolve_output
from .progress import stage
from .result import CompressionResult
from .stages import Run
from .storage import signature_of

_HELD_OUT = "held-out calibration samples"


@in_own_name
def compress(
    model: nn.Module,
    *,
    calibration: Iterable[Batch],
    train: Iterable[Batch] | None = None,
    evaluate: Iterable[Batch] | None = None,
    example_inputs: Batch | None = None,
    constraints: Mapping[str, Any],
    granularity: str = "unit",
    output: str = "auto",
    ignored_layers: Iterable[str | nn.Module] = (),
    round_to: int = 1,
    forward_fn: ForwardFn | None = None,
    config: CompressConfig | None = CompressConfig(),  # noqa: B008  (frozen)
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> CompressionResult:
    """Compresses a trained model: keeps the units that carry information, then distils.

    The caller's model, its gradients and modes, and torch's random state are left as they are,
    also by an exception or Ctrl-C.

    Args:
        model: the trained network.
        calibration: re-iterable of batches; the first ``config.calibration_samples`` are kept in
            memory. Labels, where they come, serve accuracy only. A classifier's must be classes,
            negative for none, or shares of them; with ``forward_fn`` others are passed over.
        train: batches to distil on; None: the calibration samples.
        evaluate: batches to compare the models on; None: a fifth of the calibration samples, which
            then no stage sees, provided that ``train`` does not repeat them.
        example_inputs: batch to trace with and to measure latency on; None: calibration's first.
        constraints: "units", "params", "flops", "bytes" or "latency", each a fraction kept in
            (0, 1], of which 1 is all, or an integer > 1, a count (of latency there is none); all
            of them are ceilings. For weights it is "sparsity", the fraction of them that is
            removed. "per_layer" maps names or patterns of names to what these layers keep
            themselves (for weights: to their sparsity), whatever the others must then do for the
            ceilings; alone, all others stay whole.
        granularity: "unit" removes neurons and channels. The others zero weights of Linear layers,
            which become ``simmim_ext.nn.MaskedLinear``: "weight" single ones; "2:4" (any n:m) all
            but 2 of every 4 neighbours in a row, whose number must divide the inputs; "block:16x1"
            (any RxC) blocks of 16 outputs by 1 input, smaller at a layer's ends. What
            ``simmim_ext.nn.accelerate`` has a kernel of its own for is blocks of 16 (or a multiple)
            rows.
        output: "classes" (softmax), "values" or "embeddings" (seen through Gaussian noise). "auto":
            pooled hidden states are embeddings; labels, where they come and ``forward_fn`` is None,
            mean classes, but floating ones that are no shares of classes values; otherwise one
            output is a value and several are classes. The report says which.
        ignored_layers: layers, their names or patterns of names ("encoder.layer.0.*"), that keep
            their outputs. All tensors that the model returns keep their widths without that.
        round_to: widths become multiples of it, or stay whole; those of "per_layer" are rounded
            down, but are no less than it.
        forward_fn: ``forward_fn(model, batch) -> [samples, outputs]`` where the model's forward
            gives something else; what it leaves out of that need not keep its width.
        config: everything else; None is ``CompressConfig()``.
        checkpoint_dir: folder that keeps the state of the run; the same call goes on from there
            after a kill and ends with the same model, if the loaders are deterministic or draw
            from torch's global generator. A call that differs is refused, but ``train`` is not
            looked at: give the same; nor what ``evaluate`` holds, only whether it is given.
        progress: show progress where standard error is a terminal.

    Returns:
        The compressed model, on the original's device and in its modes, with its report.

    Raises:
        ValueError, TypeError: an argument that can't be meant.
        SimMIMError: data, model, budget or folder that can't serve; the message says what to do.
    """
    check_model("compress", model)
    check_options("compress", config=config, forward_fn=forward_fn, ignored_layers=ignored_layers)
    check_example("compress", example_inputs)
    config = config or CompressConfig()
    check_trainable("compress", model, config.epochs)
    if checkpoint_dir is not None:
        checkpoint_dir = as_path("compress", checkpoint_dir, "checkpoint_dir")
    parsed = Granularity.parse(granularity)
    constraints, round_to = plain_numbers(constraints), plain_numbers(round_to)
    check_budget(parsed, constraints, config, round_to)
    check_output(output)
    for argument, data in (("calibration", calibration), ("train", train), ("evaluate", evaluate)):
        if data is not None:
            check_reiterable(data, argument)
    device = device_of(model) if config.device is None else torch.device(config.device)
    ignored = names_of(model, ignored_layers)
    check_dense("compress", model, () if parsed.name == "unit" else ignored)
    with seeded(config.seed, device=device), inputs_kept():
        teacher = copied("compress", model).to(device)
        worked_on, converted = prepared(teacher, ignored)
        samples = gather(calibration, config.calibration_samples)
        fit, seen_last = split(samples) if evaluate is None else (samples, evaluate)
        example = samples[0] if example_inputs is None else example_inputs
        resolved = resolve_output(output, teacher, samples[0], forward_fn)
        few = take(samples[0], slice(0, 2))
        check_gradients("compress", teacher, few, config.epochs, forward_fn)
        noise = None if resolved == "classes" else noise_variance(teacher, fit, forward_fn)
        name = _HELD_OUT if evaluate is None else "evaluate"
        check_comparable(teacher, seen_last, noise=noise, forward_fn=forward_fn, name=name)
        run = Run(
            teacher=worked_on,
            fit=fit,
            train=Shuffled(fit) if train is None else train,
            example=example,
            constraints=dict(constraints),
            granularity=parsed,
            ignored=ignored,
            round_to=round_to,
            noise=noise,
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
        checkpoint = Checkpoint(None, "", torch.empty(0, device="cpu"))
        if checkpoint_dir is not None:
            # Samples to evaluate on are no part of a run, but where they are held out of it.
            run_of = {**settings, "held_out": evaluate is None}
            identity = identity_of(teacher, [*samples, example], run_of)
            answers = answers_of(teacher, samples[0], forward_fn)
            checkpoint = Checkpoint(checkpoint_dir, identity, answers)
        student, state = run.go(checkpoint)
        student, back = restored(student, teacher, converted)
        with stage(state.stages, "compare", progress):
            figures = assess(
                teacher,
                student,
                seen_last,
                example,
                name=name,
                noise=noise,
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

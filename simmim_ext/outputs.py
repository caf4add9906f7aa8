"""What a model's outputs are, and the metric that goes with them.

Classes: the softmax distribution. Values and embeddings: outputs are seen through Gaussian
noise whose variance is a twentieth of the teacher's mean output variance, which defines KL and
information in nats for them as well.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, batches, labels_of, map_tensors, to_device
from .errors import SimMIMError, about
from .forward import ForwardFn, forward, named_output
from .modes import device_of, evaluating

OUTPUTS = ("auto", "classes", "values", "embeddings")
NOISE_FRACTION = 0.05


def check_output(output: str) -> None:
    """Raises ValueError unless ``output`` is one of OUTPUTS."""
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")


def resolve_output(
    output: str,
    model: nn.Module,
    batch: Batch,
    forward_fn: ForwardFn | None = None,
    *,
    name: str = "calibration",
) -> str:
    """What "auto" stands for with this model: "classes", "values" or "embeddings".

    Pooled hidden states are embeddings; integer labels and shares of several classes (one-hot,
    smoothed) mean classes, and other floating ones values; without labels a single output is a
    value and several are classes. With ``forward_fn`` labels are not looked at, since any item of
    a batch may be an input of it. ``name`` is what errors call the data that the batch is of.

    Raises:
        SimMIMError: the model cannot take the batch, or the outputs should be logits and are
            probabilities already.
    """
    check_output(output)
    batch = to_device(batch, device_of(model))
    pooled = False

    def watch(module: nn.Module, args: object, result: object) -> None:
        nonlocal pooled
        names = ("logits", "last_hidden_state")
        pooled = [named_output(result, name) is not None for name in names] == [False, True]

    handle = model.register_forward_hook(watch)
    try:
        with about(name), evaluating(model), torch.no_grad():
            outputs = forward(model, batch, forward_fn)
    finally:
        handle.remove()
    labels = labels_of(batch) if forward_fn is None else None
    if output == "auto":
        if pooled:
            output = "embeddings"
        elif labels is not None:
            values = labels.is_floating_point() and not _are_probabilities(labels)
            output = "values" if values else "classes"
        else:
            output = "values" if outputs.shape[1] == 1 else "classes"
    if output == "classes" and outputs.shape[1] == 1:
        raise SimMIMError(
            'output="classes" needs at least two outputs, got 1; pass output="values", or '
            "forward_fn=lambda model, batch: ... that returns [samples, classes]"
        )
    if output == "classes" and _are_probabilities(outputs):
        raise SimMIMError(
            "the model returns probabilities, and logits are needed: softmax would be applied "
            "twice; pass forward_fn=lambda model, batch: model(batch).log(), or output='values'"
        )
    return output


def returned(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None = None) -> list[Tensor]:
    """What ``forward`` takes of a model's answer, and behind it all of it where there is more.

    That is the tensors in nested tuples, lists and dicts, and in an object with attributes. With
    ``forward_fn`` what it returns is all: the caller has chosen.
    """
    answers: list[Any] = []
    handle = model.register_forward_hook(lambda _, args, answer: answers.append(answer))
    try:
        first = forward(model, batch, forward_fn)
    finally:
        handle.remove()
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    if forward_fn is None:
        answer = answers[-1]
        plain = isinstance(answer, Tensor | Mapping | list | tuple)
        map_tensors(answer if plain else getattr(answer, "__dict__", {}), note)
    return [first, *found] if len(found) > 1 else [first]


def noise_variance(
    teacher: nn.Module,
    data: Iterable[Batch],
    forward_fn: ForwardFn | None = None,
    *,
    limit: int = 1000,
    name: str = "calibration",
) -> float:
    """Variance of the Gaussian output noise, from the teacher's outputs on ``limit`` samples.

    ``name`` is what errors call the data.

    Raises:
        SimMIMError: the model cannot take the data, or the outputs do not vary.
    """
    rows = []
    with evaluating(teacher), torch.no_grad():
        for batch in batches(data, device=device_of(teacher), limit=limit, name=name):
            with about(name):
                rows.append(forward(teacher, batch, forward_fn))
    outputs = torch.cat(rows).double()
    variance = float(outputs.var(dim=0, correction=0).mean())
    if not variance > 0:
        raise SimMIMError(
            f"the teacher's outputs do not vary over {len(outputs)} samples (variance {variance}); "
            "give more calibration data, or check the model"
        )
    return NOISE_FRACTION * variance


def kl_per_sample(
    teacher: Tensor, student: Tensor, *, noise: float | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) in nats of outputs [samples, outputs], for each sample [samples].

    ``noise`` None: categorical, of the softmax at that temperature. A variance: Gaussian.
    """
    if noise is not None:
        return (teacher - student).square().sum(dim=1) / (2 * noise)
    p = torch.log_softmax(teacher / temperature, dim=1)
    q = torch.log_softmax(student / temperature, dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def divergence(
    teacher: nn.Module,
    student: nn.Module,
    data: Iterable[Batch],
    noise: float | None,
    forward_fn: ForwardFn | None = None,
    *,
    limit: int = 1000,
) -> float:
    """Mean KL(teacher || student) in nats on ``limit`` samples, both in eval mode."""
    device = device_of(teacher)
    with evaluating(teacher, student), torch.no_grad():
        each = [
            kl_per_sample(
                forward(teacher, batch, forward_fn).float(),
                forward(student, batch, forward_fn).float(),
                noise=noise,
            )
            for batch in batches(data, device=device, limit=limit)
        ]
    return float(torch.cat(each).double().mean())


def _are_probabilities(outputs: Tensor) -> bool:
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return False
    totals = outputs.double().sum(dim=1)
    close = torch.allclose(totals, torch.ones_like(totals), atol=1e-2)
    return close and bool((outputs >= 0).all())

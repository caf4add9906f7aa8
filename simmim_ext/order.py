"""The layers of a network in the order in which they run."""

import torch
from torch import Tensor, nn

from .data import Batch
from .forward import ForwardFn, forward, mask_of, token_rows
from .layers import Weighted, is_affine
from .recording import Recorder, observing
from .sharing import tied_parameters


def layers_together(
    model: nn.Module, batch: Batch, forward_fn: ForwardFn | None
) -> list[list[str]]:
    """``layers_in_order``, those that read one and the same tensor in one list."""
    read: dict[str, list[tuple[Tensor, int]]] = {}
    order = layers_in_order(model, batch, forward_fn)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            # With its version, since x += layer(x) is another tensor of the same name.
            lambda _, args, n=name: read.setdefault(n, []).append((args[0], args[0]._version))
        )
        for name in order
    ]
    with observing(model, hooks):
        forward(model, batch, forward_fn)
    together: list[list[str]] = []
    last: tuple[Tensor, int] | None = None
    for name in order:
        (x, version), *more = read[name]
        same = last is not None and x is last[0] and version == last[1]
        if same and not more:
            together[-1].append(name)
        else:
            together.append([name])
        last = None if more else (x, version)
    return together


def layers_in_order(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> list[str]:
    """Linear and convolution layers that can be refitted, in the order in which they run.

    Their outputs are their weights times their inputs: those of a layer with a forward function or
    hooks that make something else of it say nothing about the weights. A layer that shares a
    parameter is none of them: the fit of one owner would spoil the other.
    """
    others = {*tied_parameters(model), *_changed_by_hooks(model, batch, forward_fn)}
    return [
        name
        for name in weighted_in_order(model, batch, forward_fn)
        if is_affine(model.get_submodule(name)) and name not in others
    ]


def _changed_by_hooks(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> set[str]:
    """Names of the layers whose hooks change their outputs."""
    outputs: dict[str, list[tuple[Tensor, int]]] = {}
    hooks = []
    for name, layer in model.named_modules():
        if layer._forward_hooks and isinstance(layer, Weighted) and is_affine(layer):
            seen = outputs.setdefault(name, [])
            for first in (True, False):  # of the hooks, and last
                hooks.append(
                    layer.register_forward_hook(
                        lambda _, args, out, to=seen: to.append((out, out._version)), prepend=first
                    )
                )
    if hooks:
        with observing(model, hooks):
            forward(model, batch, forward_fn)
    return {
        name
        for name, seen in outputs.items()
        for (made, version), (left, later) in zip(seen[::2], seen[1::2], strict=True)
        if left is not made or later != version
    }


def weighted_in_order(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> list[str]:
    """All Linear and convolution layers that run, in the order in which they first do."""
    names = [name for name, module in model.named_modules() if isinstance(module, Weighted)]
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, n=name: order.append(n))
        for name in names
    ]
    with observing(model, hooks):
        forward(model, batch, forward_fn)
    return list(dict.fromkeys(order))


def makes_outputs(model: nn.Module, batch: Batch, name: str, forward_fn: ForwardFn | None) -> bool:
    """Whether the output of that Linear layer is the model's output."""
    recorder = Recorder(model, [name])
    with observing(model, ()), recorder.recording():
        outputs = forward(model, batch, forward_fn)
    calls = recorder.calls[name]
    if not calls:
        return False
    made = token_rows(calls[-1][1], mask_of(batch, forward_fn))
    return made.shape == outputs.shape and torch.equal(made, outputs)

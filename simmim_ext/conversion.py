"""Layers that units are removed from in another form, and back.

transformers' Conv1D (GPT-2) is a Linear whose weight is transposed, and is one while the model
is worked on; the result has Conv1D again. torch.nn.MultiheadAttention becomes
simmim_ext.nn.MultiheadAttention, and stays that where heads or channels are gone.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SimMIMError
from .nn.attention import MultiheadAttention
from .nn.convert import hooks_of
from .storage import set_submodule

Step = dict[str, Any]


def prepared(model: nn.Module, ignored: Iterable[str] = ()) -> tuple[nn.Module, list[Step]]:
    """The model in the form that units are removed from, and the steps to it.

    The model itself and no steps where it is in that form already; else a copy. Ignored layers
    stay what they are.

    Raises:
        SimMIMError: a layer has hooks, which the one in its place would lose.
    """
    ignored = frozenset(ignored)
    steps = [
        {"module": name, "convert": form}
        for name, module in model.named_modules()
        if name and name not in ignored and (form := _form(module)) is not None
    ]
    if not steps:
        return model, []
    model = deepcopy(model)
    for step in steps:
        convert_(model, step)
    return model, steps


def restored(
    model: nn.Module, original: nn.Module, steps: Iterable[Step]
) -> tuple[nn.Module, list[Step]]:
    """The model with Conv1D where the original has it and it still is Linear, and the steps."""
    back = [
        {"module": step["module"], "convert": "Conv1D"}
        for step in steps
        if step["convert"] == "Linear" and type(model.get_submodule(step["module"])) is nn.Linear
    ]
    if not back:
        return model, []
    model = deepcopy(model)
    for step in back:
        convert_(model, step, original)
    return model, back


def convert_(model: nn.Module, step: Mapping[str, Any], original: nn.Module | None = None) -> None:
    """Takes one step, in place; Conv1D's class is looked up in the original.

    Raises:
        SimMIMError: the model has no such layer, or it has hooks.
    """
    name, form = step["module"], step["convert"]
    try:
        layer = model.get_submodule(name)
        new: nn.Module
        if form == "Conv1D" and original is not None and isinstance(layer, nn.Linear):
            new = _to_conv1d(layer, original.get_submodule(name))
        elif form == "Linear" and is_conv1d(layer):
            new = _to_linear(layer)
        elif form == "MultiheadAttention" and isinstance(layer, nn.MultiheadAttention):
            new = MultiheadAttention.from_torch(layer)
        else:
            raise AttributeError(f"it is a {type(layer).__name__}")
    except AttributeError as error:
        raise SimMIMError(
            f"apply_history: the model has no layer {name!r} that can become a {form} ({error}); "
            "give an instance of the architecture that was compressed"
        ) from error
    check_hooks(name, layer)
    set_submodule(model, name, new)
    if isinstance(new, MultiheadAttention):
        for encoder in model.modules():
            # It would make nested tensors of padded texts, for a fused path that reads weights
            # which this attention has not.
            if isinstance(encoder, nn.TransformerEncoder) and new in encoder.modules():
                encoder.use_nested_tensor = False


def check_hooks(name: str, layer: nn.Module) -> None:
    """Raises SimMIMError unless the layer can be replaced without losing hooks."""
    if hooks_of(layer):
        raise SimMIMError(
            f"model: the {type(layer).__name__} {name!r} must not have hooks, which the layer in "
            "its place would lose; remove them first, or put the layer in ignored_layers"
        )


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def _form(module: nn.Module) -> str | None:
    if is_conv1d(module):
        return "Linear"
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        return "MultiheadAttention"
    return None


def _to_linear(layer: Any) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1])
    _fill_(linear, layer)
    return linear


def _to_conv1d(layer: nn.Linear, original: nn.Module) -> nn.Module:
    conv = deepcopy(original)
    conv.nf, conv.nx = layer.out_features, layer.in_features  # type: ignore[assignment]
    _fill_(conv, layer)
    return conv


def _fill_(new: Any, old: Any) -> None:
    """Gives the new layer the transposed weight, the bias, flags and mode of the old one."""
    values: Tensor = old.weight.detach().T.contiguous()
    new.weight = nn.Parameter(values, requires_grad=old.weight.requires_grad)
    new.bias = nn.Parameter(old.bias.detach().clone(), requires_grad=old.bias.requires_grad)
    new.train(old.training)

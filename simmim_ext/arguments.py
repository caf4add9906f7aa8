"""Checks of what the workflow's functions are given, before any of it is used."""

from collections.abc import Container, Iterable, Iterator
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .config import CompressConfig
from .data import Batch, samples_of, to_device
from .errors import SimMIMError, about
from .forward import ForwardFn, forward
from .modes import device_of, evaluating, in_mode, why_unusable
from .nn import MaskedLinear, SparseLinear
from .nn.convert import check_is_module


def check_model(caller: str, model: Any, argument: str = "model") -> None:
    """Raises unless ``model`` is a module with weights, whose code can be run and changed."""
    check_module(caller, model, argument)
    for name, value in _tensors(model):
        if value.is_meta:
            raise SimMIMError(
                f"{caller}: {argument} must have its weights, and {name!r} is on the meta device, "
                "where tensors have no values; load the weights first"
            )


def check_module(caller: str, model: Any, argument: str = "model") -> None:
    """Raises unless ``model`` is a module of known shapes, whose code can be run and changed."""
    check_is_module(caller, model, argument)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{caller}: {argument} must be an eager model, got {type(model).__name__}; give the "
            "model that it was made from"
        )
    # What torch.compile returns, told without the second that importing torch._dynamo takes.
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise TypeError(
            f"{caller}: {argument} must be an eager model, got one that torch.compile returned; "
            "give the model that it was made from, and compile the result"
        )
    for name, value in _tensors(model):
        if is_lazy(value):
            raise SimMIMError(
                f"{caller}: {argument} must have its weights, and {name!r} is of a lazy layer and "
                "has no shape yet; run one batch through the model first"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def watched(caller: str, model: nn.Module) -> nn.Module:
    """A copy of the model to run, since that can change its buffers and attributes.

    It has the model's own parameters, which are not to be changed.

    Raises:
        SimMIMError: it cannot be copied.
    """
    attributes = (value for module in model.modules() for value in vars(module).values())
    # As the weight that an old weight_norm makes anew in every call.
    computed = (x for x in attributes if isinstance(x, Tensor) and not x.is_leaf)
    return copied(caller, model, shared=(*model.parameters(), *computed))


def copied(caller: str, model: nn.Module, *, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy of the model to work on, which shares these tensors with it.

    Raises:
        SimMIMError: it cannot be copied.
    """
    try:
        with torch.inference_mode(False):
            return deepcopy(model, {id(tensor): tensor for tensor in shared})
    except Exception as error:
        raise SimMIMError(
            f"{caller}: the model cannot be copied ({error}); take from its attributes what "
            "copy.deepcopy cannot copy, such as tensors that are no leaves, locks and open files"
        ) from error


def check_options(
    caller: str,
    *,
    config: Any = None,
    forward_fn: Any = None,
    ignored_layers: Any = (),
) -> None:
    """Raises unless each of them is of its kind, and the configured device is there."""
    if config is not None and not isinstance(config, CompressConfig):
        raise TypeError(f"{caller}: config must be a CompressConfig, got {type(config).__name__}")
    if forward_fn is not None and not callable(forward_fn):
        raise TypeError(
            f"{caller}: forward_fn must be callable as forward_fn(model, batch), "
            f"got {type(forward_fn).__name__}"
        )
    if isinstance(ignored_layers, str) or not isinstance(ignored_layers, Iterable):
        raise TypeError(
            f"{caller}: ignored_layers must be an iterable of layers or their names, "
            f"got {ignored_layers!r}"
        )
    if config is not None and config.device is not None:
        reason = why_unusable(config.device)
        if reason is not None:
            raise SimMIMError(
                f"{caller}: config.device is {str(config.device)!r}, which cannot be used here "
                f"({reason}); choose another, or None for the model's own"
            )


def check_device(caller: str, model: nn.Module, config: CompressConfig) -> None:
    """Raises ValueError where ``config.device`` is set and is not the model's."""
    if config.device is None:
        return
    wanted, found = torch.device(config.device), device_of(model)
    alike = wanted.index is None or found.index in (None, wanted.index)
    if wanted.type != found.type or not alike:
        raise ValueError(
            f"{caller}: config.device is {str(wanted)!r}, and {caller} computes where the model "
            f"is, on {str(found)!r}; move the model with model.to({str(wanted)!r}), or leave "
            "device at None"
        )


def check_example(caller: str, example_inputs: Any) -> None:
    """Raises SimMIMError where example inputs are given and are no batch, or hold no sample."""
    if example_inputs is None:
        return
    with about("example_inputs"):
        samples = samples_of(example_inputs)
    if samples == 0:
        raise SimMIMError(
            f"{caller}: example_inputs must hold at least one sample, got a batch of 0; give a "
            "batch of the model's inputs, or None for the first of the data"
        )


def check_trainable(caller: str, model: nn.Module, epochs: int) -> None:
    """Raises SimMIMError where epochs are asked for that the model cannot be trained in.

    Its parameters are all frozen, or one that is not is float16 or gets sparse gradients.
    """
    dtypes = [parameter.dtype for parameter in model.parameters() if parameter.requires_grad]
    if epochs > 0 and not dtypes:
        sparse = any(isinstance(module, SparseLinear) for module in model.modules())
        has_some = "simmim_ext.nn.strip(model) has some in place of each SparseLinear"
        advice = has_some if sparse else "call model.requires_grad_(True)"
        raise SimMIMError(
            f"{caller}: config.epochs is {epochs}, and no parameter of the model requires a "
            f"gradient; {advice}, or set epochs=0 to distil nothing"
        )
    if epochs > 0 and torch.float16 in dtypes:
        raise SimMIMError(
            f"{caller}: config.epochs is {epochs}, and the model's parameters are float16, in "
            "which small gradients are 0 and large ones infinite; give model.float() or "
            "model.bfloat16(), or set epochs=0 to distil nothing"
        )
    for name, module in model.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        if epochs > 0 and sparse and module.weight.requires_grad:
            raise SimMIMError(
                f"{caller}: config.epochs is {epochs}, and the {type(module).__name__} {name!r} "
                "gives sparse gradients, which Adam does not take; set its attribute sparse to "
                "False, freeze it with requires_grad_(False), or set epochs=0 to distil nothing"
            )


def check_gradients(
    caller: str, model: nn.Module, batch: Batch, epochs: int, forward_fn: ForwardFn | None
) -> None:
    """Raises SimMIMError where epochs are asked for and the outputs have no gradients."""
    if epochs == 0:
        return
    model, batch = watched(caller, model), to_device(batch, device_of(model))
    for training in (False, True):  # some forward functions have gradients in training alone
        with evaluating(model), in_mode(model, training=training), torch.enable_grad():
            if forward(model, batch, forward_fn).requires_grad:
                return
    raise SimMIMError(
        f"{caller}: config.epochs is {epochs}, and the model's outputs do not depend on a "
        "parameter that requires a gradient; leave torch.no_grad and detach out of its forward and "
        "forward_fn, or set epochs=0 to distil nothing"
    )


def check_dense(caller: str, model: nn.Module, ignored: Container[str] = ()) -> None:
    """Raises SimMIMError where a layer's weights are masked already, unless it is ignored."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedLinear | SparseLinear) and name not in ignored:
            raise SimMIMError(
                f"{caller}: the layer {name!r} is a {type(module).__name__}, as an earlier "
                "compression leaves it; give simmim_ext.nn.strip(model), in which it is a plain "
                "Linear with zeros"
            )


def as_path(caller: str, folder: str | PathLike[str], argument: str) -> Path:
    """The folder or file as a Path."""
    if not isinstance(folder, str | PathLike):
        raise TypeError(f"{caller}: {argument} must be a path, got {type(folder).__name__}")
    return Path(folder)

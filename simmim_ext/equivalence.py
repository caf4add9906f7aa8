"""Proves that nothing but the units that were to go has gone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import convert_
from .data import Batch, take, to_device
from .errors import SimMIMError
from .forward import ForwardFn
from .layers import Axis, axis_size, is_channel_norm, place_of
from .modes import device_of, evaluating, in_mode, seeded
from .outputs import returned
from .removal import History, remove_units
from .standin import running
from .units import UnitGroup

# What outputs may differ by: a share of what zeroing changes, and what rounding can make of it.
_SHARE = 1e-4
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class RemovalError(SimMIMError):
    """Units were removed that cannot be, or not at their place."""


def proved_removal(
    model: nn.Module,
    groups: Iterable[UnitGroup],
    kept: Mapping[str, Sequence[int]],
    example: Batch,
    *,
    trained: bool = False,
    forward_fn: ForwardFn | None = None,
) -> tuple[nn.Module, History]:
    """``remove_units``, checked by ``check_mask_equivalence`` on 16 samples of the example.

    Raises:
        SimMIMError: it fails; the error names the groups of which the units alone make it fail.
    """
    options: dict[str, Any] = {"trained": trained, "forward_fn": forward_fn}
    groups, few = tuple(groups), take(example, slice(0, 16))

    def removed(some: Iterable[UnitGroup]) -> tuple[nn.Module, History]:
        some = tuple(some)
        pruned, history = remove_units(model, some, {g.name: kept[g.name] for g in some})
        check_mask_equivalence(model, pruned, history, few, **options)
        return pruned, history

    def astray() -> Iterator[str]:
        for group in groups:
            try:
                removed([group])
            except SimMIMError:
                yield group.name

    try:
        return removed(groups)
    except RemovalError as error:
        raise SimMIMError(f"{error}{caused_by(astray())}") from error


def check_mask_equivalence(
    model: nn.Module,
    pruned: nn.Module,
    history: Iterable[Mapping[str, Any]],
    batch: Batch,
    *,
    trained: bool = False,
    forward_fn: ForwardFn | None = None,
) -> None:
    """Raises RemovalError unless the pruned model is the model with the removed slices zeroed.

    Shapes alone miss a wrong index; equal outputs do not. Both are compared on copies in eval
    mode; of what they return besides the outputs the shapes are. A norm over channels (LayerNorm,
    RMSNorm, GroupNorm of one group), whose statistics rightly change with the channels, divides by
    the root mean square over the original's channels in both. To be called before any weight is
    refitted. A model that is in training mode, or that will be ``trained``, must run in it as well.
    Raises SimMIMError where already the model's own outputs cannot be compared.
    """
    batch = to_device(batch, device_of(model))
    masked, history = deepcopy(model), list(history)
    with torch.no_grad():
        for step in history:
            if step.get("convert") not in (None, "Conv1D"):  # the way back changes nothing here
                convert_(masked, step)
        original = deepcopy(masked)
        whole = {n: axis_size(m, "out") for n, m in masked.named_modules() if _over_channels(m)}
        for step in history:
            if "kept" in step:
                gone = sorted(set(range(step["size"])) - set(step["kept"]))
                _zero(place_of(masked, step["module"], step["axis"]), step["axis"], gone)
    expected, *others = _fixed_outputs(masked, whole, batch, forward_fn)
    copy = deepcopy(pruned)
    outputs, *left = _run(copy, partial(_fixed_outputs, copy, whole, batch, forward_fn))
    for before, after in zip(others, left, strict=False):
        if before.shape != after.shape:
            raise RemovalError(
                f"the pruned model returns a tensor of shape {list(after.shape)} among others, and "
                f"the original one of shape {list(before.shape)}; put the layers that make it in "
                "ignored_layers, or pass forward_fn=lambda model, batch: ... that returns what "
                "must be kept"
            )
    allowed, difference = 0.0, torch.inf
    if outputs.shape == expected.shape:
        unmasked, *_ = _fixed_outputs(original, whole, batch, forward_fn)
        effect = (unmasked - expected).abs().max()
        allowed = float(_SHARE * effect + _rounding(expected))
        difference = float((outputs - expected).abs().max())
    if not difference <= allowed:
        _check_steady(original, whole, batch, forward_fn)
        raise RemovalError(
            "the pruned model differs from the original with the removed units zeroed (by "
            f"{difference:.2g}, {allowed:.2g} may be rounding): units were removed at the wrong "
            "place; please report the architecture, and put the layers concerned in ignored_layers"
        )
    if model.training or trained:
        _check_training(original, copy, batch, forward_fn)


def _run(pruned: nn.Module, run: Callable[[], list[Tensor]], mode: str = "") -> list[Tensor]:
    """What a run of the pruned model gives; ``mode`` is for the error.

    Raises:
        RemovalError: it does not run.
    """
    with running(pruned) as names:
        try:
            return run()
        except SimMIMError as error:
            where = repr(names[-1]) if names else "its forward"
            reason = error if error.__cause__ is None else error.__cause__
            raise RemovalError(
                f"the pruned model does not run{mode}: {where} fails ({reason}), as happens where "
                "code relies on a width (a buffer of it, a reshape into heads), or where what a "
                "layer makes is no output of the model; put the layers that make what it reads in "
                "ignored_layers"
            ) from error


def _check_training(
    original: nn.Module, pruned: nn.Module, batch: Batch, forward_fn: ForwardFn | None
) -> None:
    """Raises RemovalError where the pruned model does not run in training mode, as it should.

    Heads that are used there alone are not traced.
    """
    device = device_of(original)
    with seeded(0, device=device), torch.no_grad(), in_mode(original, pruned, training=True):
        try:
            _run(pruned, partial(returned, pruned, batch, forward_fn), " in training mode")
        except RemovalError:
            try:
                returned(original, batch, forward_fn)
            except SimMIMError:
                return  # as BatchNorm of a single sample
            raise


def _check_steady(
    model: nn.Module, whole: Mapping[str, int], batch: Batch, forward_fn: ForwardFn | None
) -> None:
    """Raises SimMIMError where already the original's outputs differ from call to call."""
    first, again = (_fixed_outputs(model, whole, batch, forward_fn)[0] for _ in range(2))
    if not torch.isfinite(first).all():
        raise SimMIMError(
            "the model's outputs for example_inputs are not finite, so no removal of units can be "
            "proved; check example_inputs and the weights"
        )
    if first.shape != again.shape or (first - again).abs().max() > _rounding(first):
        raise SimMIMError(
            "the model's outputs differ from call to call in eval mode, as by F.dropout(x) without "
            "training=self.training, so no removal of units can be proved; make them the same"
        )


def _rounding(x: Tensor) -> Tensor:
    return _ROUNDING[x.dtype] * x.abs().max()


def caused_by(names: Iterable[str]) -> str:
    """What to add to an error that removing units of each of these groups alone brings about."""
    quoted = ", ".join(map(repr, names))
    return f"; already the units of {quoted}, removed alone, cause it" if quoted else ""


def _zero(place: nn.Module | nn.Parameter, axis: Axis, channels: list[int]) -> None:
    if isinstance(place, nn.Parameter):
        place.movedim(int(axis), 0)[channels] = 0
        return
    for name, parameter in place.named_parameters(recurse=False):
        if axis == "out" and not isinstance(place, nn.Embedding):
            parameter[channels] = 0
        elif name == "weight":
            parameter[:, channels] = 0
    statistics = getattr(place, "running_mean", None)
    if axis == "out" and statistics is not None:
        statistics[channels] = 0  # so that a norm without affine part gives zero as well


def _over_channels(module: nn.Module) -> bool:
    """Whether it normalizes over all channels: also GroupNorm of a single group."""
    single = isinstance(module, nn.GroupNorm) and module.num_groups == 1
    return single or is_channel_norm(module)


def _fixed_norm(norm: Any, channels: int, x: Tensor) -> Tensor:
    """What a norm over channels gives if it does not change with their number.

    Removed channels are zero in the masked model and absent in the pruned one: the sum of squares
    is the same in both.
    """
    if isinstance(norm, nn.GroupNorm):  # over all positions as well
        squares = x.square().reshape(*x.shape[:2], -1).mean(2).sum(1)
        squares = squares.view(-1, *[1] * (x.dim() - 1))
        x = x * (squares / channels + 1e-6).rsqrt()
        shape = (-1, *[1] * (x.dim() - 2))
        return x if norm.weight is None else x * norm.weight.view(shape) + norm.bias.view(shape)
    dim = _channel_dim(norm, x)
    x = x * (x.square().sum(dim, keepdim=True) / channels + 1e-6).rsqrt()
    x = x.movedim(dim, -1)
    if getattr(norm, "weight", None) is not None:
        x = x * norm.weight
    if getattr(norm, "bias", None) is not None:
        x = x + norm.bias
    return x.movedim(-1, dim)


def _channel_dim(norm: nn.Module, x: Tensor) -> int:
    """The dimension of x that a norm over channels is over, the last or that behind the samples.

    Where both are as long as it, as on a feature map as wide as it has channels, what its own
    function can take tells.
    """
    channels = axis_size(norm, "out")
    if x.shape[-1] == channels == x.shape[1] and x.dim() > 2:
        try:
            type(norm).forward(norm, x.new_zeros(1, channels + 1, *x.shape[2:]))
        except Exception:
            return 1
    return -1 if x.shape[-1] == channels else 1


def _fixed_outputs(
    model: nn.Module, whole: Mapping[str, int], batch: Batch, forward_fn: ForwardFn | None
) -> list[Tensor]:
    """``returned`` by a copy that may be changed.

    ``whole`` has the channels of the original's norms.
    """
    for name, channels in whole.items():
        norm: Any = model.get_submodule(name)
        norm.forward = partial(_fixed_norm, norm, channels)
    with torch.no_grad(), evaluating(model):
        first, *others = returned(model, batch, forward_fn)
        return [first.clone(), *others]

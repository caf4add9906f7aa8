"""torch-pruning's importances as criteria, on our groups of units."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .collect import GroupStatistics
from .data import Batch, batches, samples_of, take
from .errors import SimMIMError, about
from .forward import forward
from .labels import NO_LABEL, true_classes
from .modes import device_of, evaluating
from .ranking import Ranking, Setting, by_score
from .units import UnitGroup

# Gradients of single samples are taken one by one.
_HESSIAN_SAMPLES = 1000


def importance(kind: str, setting: Setting) -> Callable[[GroupStatistics], Ranking]:
    """A criterion by one of torch-pruning's importances, at its default reduction of groups.

    "taylor" takes the gradient of the cross-entropy with the labels, where the batches carry
    them, and with the predicted classes where they do not. "hessian" (optimal brain damage) takes
    its square sample by sample, for at most 1,000 of them. "activation" is the mean absolute input
    of the layers that read a unit, over all calibration samples.
    """
    from torch_pruning.pruner import importance as tp

    with torch.inference_mode(False):
        model = deepcopy(setting.model)
    kinds: dict[str, Callable[[], Any]] = {
        "magnitude_l1": lambda: tp.GroupMagnitudeImportance(p=1),
        "magnitude_l2": lambda: tp.GroupMagnitudeImportance(p=2),
        "fpgm": tp.FPGMImportance,
        "taylor": tp.GroupTaylorImportance,
        "hessian": tp.GroupHessianImportance,
        "activation": tp.ActivationImportance,
    }
    if kind == "fpgm":
        model = model.float()  # there are no distances in less
    measure = kinds[kind]()
    if kind == "taylor":
        _set_gradients(model, setting)
    if kind == "hessian":
        _set_squared_gradients(model, setting)
    if kind == "activation":
        _set_activations(model, measure, setting)

    def rank(stats: GroupStatistics) -> Ranking:
        values = measure(_torch_pruning_group(model, stats.group))
        if values is None or len(values) < stats.group.units:
            raise SimMIMError(
                f"score: torch-pruning has no {kind} for the units of {stats.group.name!r}; "
                "choose another criterion"
            )
        # It sizes its result after the first layer it takes; behind a flatten that is longer.
        return by_score(values[: stats.group.units])

    return rank


def _torch_pruning_group(model: nn.Module, group: UnitGroup) -> Any:
    """Our group as torch-pruning's importances expect it, without what they do not know.

    That is parameters that no layer holds, and norms that are not torch's own.
    """
    from torch_pruning.dependency import Dependency, Group, Node
    from torch_pruning.ops import module2type
    from torch_pruning.pruner.function import PrunerBox

    converted = Group()
    for member in group.members:
        if member.axis.isdigit():
            continue
        layer = model.get_submodule(member.module)
        pruner = PrunerBox.get(module2type(layer))
        if pruner is None:
            continue
        handler = pruner.prune_out_channels if member.axis == "out" else pruner.prune_in_channels
        node = Node(layer, None, member.module)
        converted.add_dep(Dependency(handler, handler, node, node), list(member.indices))
        converted[len(converted) - 1].root_idxs = list(member.units)
    return converted


def _set_gradients(model: nn.Module, setting: Setting) -> None:
    """Accumulates the loss's gradient over the calibration samples."""
    _clear_gradients(model)
    generator = _generator(setting)
    for batch in _batches(setting):
        _backward(model, batch, setting, generator)


def _set_squared_gradients(model: nn.Module, setting: Setting) -> None:
    """Leaves the mean over samples of the squared gradient where the gradient is kept.

    torch-pruning's own accumulation keeps the last sample only.
    """
    _clear_gradients(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    seen, generator = 0, _generator(setting)
    for batch in _batches(setting, limit=_HESSIAN_SAMPLES):
        for i in range(samples_of(batch)):
            model.zero_grad(set_to_none=True)
            _backward(model, take(batch, slice(i, i + 1)), setting, generator)
            for square, parameter in zip(total, parameters, strict=True):
                if parameter.grad is not None:
                    square.addcmul_(parameter.grad, parameter.grad)
            seen += 1
    for square, parameter in zip(total, parameters, strict=True):
        parameter.grad = square / seen


def _clear_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())


def _generator(setting: Setting) -> torch.Generator:
    return torch.Generator(device_of(setting.model)).manual_seed(setting.config.seed)


def _backward(model: nn.Module, batch: Batch, setting: Setting, generator: torch.Generator) -> None:
    """Adds the gradient of the batch's loss, with labels or with what the model predicts.

    Values are drawn from the prediction with the generator.
    """
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        outputs = forward(model, batch, setting.forward_fn).float()
        if setting.predictions.noise is not None:
            drawn = torch.randn(outputs.shape, generator=generator, device=outputs.device)
            loss = (outputs - outputs.detach() - drawn).square().sum()
        else:
            with about("calibration"):
                labels = true_classes(batch, outputs, setting.forward_fn)
            target = outputs.argmax(1) if labels is None else labels
            loss = F.cross_entropy(outputs, target, reduction="sum", ignore_index=NO_LABEL)
        loss.backward()  # type: ignore[no-untyped-call]


def _set_activations(model: nn.Module, measure: Any, setting: Setting) -> None:
    """Mean of what torch-pruning's hooks record, which keep the last batch only."""
    total: dict[nn.Module, Tensor] = {}
    passes = 0
    with measure.compute_importance(model):
        for batch in _batches(setting):
            with evaluating(model), torch.no_grad():
                forward(model, batch, setting.forward_fn)
            passes += 1
            for module in model.modules():
                latest: Any = getattr(module, "_importance", None)
                if latest is not None:
                    total[module] = latest + total.get(module, 0)
    for module, value in total.items():
        setattr(module, "_importance", value / passes)  # noqa: B010  (an attribute of theirs)


def _batches(setting: Setting, *, limit: int | None = None) -> Any:
    samples = setting.config.calibration_samples
    return batches(
        setting.calibration,
        device=device_of(setting.model),
        limit=samples if limit is None else min(limit, samples),
        name="calibration",
    )

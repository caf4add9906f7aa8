"""Removes weights of Linear layers: the rows that predict the same from fewer inputs.

How many weights (or blocks of weights) a row keeps is set by their magnitude over the whole model,
or by the pattern, as 2:4. Which ones is decided row by row (or stripe of blocks by stripe), by the
information that they add to the others: see ``elimination``.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import check_hooks
from .data import Batch
from .elimination import surviving
from .errors import SimMIMError
from .forward import ForwardFn
from .granularity import Granularity
from .layers import weighted
from .moments import NormalEquations
from .names import matching
from .nn import MaskedLinear
from .order import weighted_in_order
from .original import Original
from .reconstruction import RIDGE, Pair, refit_to_predictions
from .storage import set_submodule

# Elements of the inverse matrices that stripes are worked on with at a time.
_CHUNK = 1 << 24

# Inputs whose variance is less, as a share of their mean square, are constant: rounding leaves them
# a covariance of about 1e-16 of it, with negative eigenvalues as well.
_ROUNDING = 1e-12


def prune_weights(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    sparsity: float | None,
    samples: int,
    granularity: Granularity = Granularity("weight"),  # noqa: B008  (frozen)
    per_layer: Mapping[str, float] | None = None,
    largest_of: nn.Module | None = None,
    seed: int = 0,
    ignored_layers: frozenset[str] = frozenset(),
    refit_outputs: bool = False,
    forward_fn: ForwardFn | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of the model whose Linear layers are MaskedLinear with few weights left.

    From input to output each layer is refitted, on the smaller network's own inputs, to what
    the original layer said. Convolutions stay as they are.

    Args:
        model: the network.
        data: calibration batches.
        sparsity: fraction of the Linear layers' weights to remove, in (0, 1); rounded up to a
            weight or block. None where granularity or per_layer say it all.
        samples: most calibration samples to use.
        granularity: which weights stay or go together.
        per_layer: name or pattern -> sparsity, in [0, 1), of layers that have their own; the
            others bring the whole to the sparsity, or stay dense if there is none.
        largest_of: the network whose magnitudes settle how many weights a row keeps; None: the
            model itself. Those of a model that an earlier step refitted starve its late layers.
        seed: of whatever is drawn.
        ignored_layers: qualified names of layers that stay dense.
        refit_outputs: whether the last layer's weights are refitted to the model's predictions by
            KL divergence; a distillation that follows does that better.
        forward_fn: as in ``score``.

    Returns:
        The sparse model, and for each layer that runs its name, "before" and "after" (weights), and
        "dense", which is true where the layer stayed as it was: convolutions, ignored layers, those
        that share a parameter with another (tied weights), those of a class that is not nn.Linear
        itself (a subclass, or parametrized), with a forward function or tensors of their own, and
        those that per_layer or the sparsity leave whole.

    Raises:
        SimMIMError: the model has no Linear layer to remove weights from or is one itself, one has
            hooks, or weights, inputs or outputs that are not finite, or does not fit the
            granularity, or per_layer names none or leaves nothing to reach the sparsity with, or
            the sparsity does not leave every layer a block.
    """
    if sparsity is not None and not 0 < sparsity < 1:
        raise ValueError(f"prune_weights: sparsity must be in (0, 1), got {sparsity!r}")
    student = deepcopy(model)
    original = Original(deepcopy(model), data, samples=samples, seed=seed, forward_fn=forward_fn)
    pair = Pair(original.resumed(student), original)
    names = weighted_in_order(model, original.example, forward_fn)
    plain = {n for n in names if _is_plain(weighted(model, n)) and n not in ignored_layers}
    for name in sorted(plain):
        check_hooks(name, weighted(model, name))
    linear = [name for name in original.order if name in plain]
    if not linear:
        kinds = {type(weighted(model, name)).__name__ for name in {*names} - ignored_layers}
        others = f"; its layers are {', '.join(sorted(kinds))}" if kinds else ""
        raise SimMIMError(
            "prune_weights: the model has no Linear layer to remove weights from, other than "
            f"ignored or tied ones{others}; give one with layers of class nn.Linear itself"
        )
    if linear == [""]:
        raise SimMIMError(
            "prune_weights: the model must not be a Linear layer itself, which no other can take "
            "the place of; give nn.Sequential(model)"
        )
    weights = {name: weighted(model, name).weight.detach() for name in linear}
    for name, weight in weights.items():
        granularity.check(name, weight)
        if not torch.isfinite(weight).all():
            raise SimMIMError(
                f"prune_weights: the weights of {name!r} are not finite; check the model"
            )
    own = matching(per_layer or {}, dict.fromkeys(linear, ()))
    of = model if largest_of is None else largest_of
    large = {name: weighted(of, name).weight.detach() for name in linear}
    counts = _counts(large, sparsity, own, granularity)
    masks = {}
    for name in counts:
        layer = weighted(student, name)
        assert isinstance(layer, nn.Linear)
        weight, bias, mask = _eliminate(
            pair.whole({name: None})[name], counts[name], granularity, layer.bias is not None
        )
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)
        masks[name] = mask.to(layer.weight.device)
        set_submodule(student, name, MaskedLinear.from_linear(layer, masks[name]))
    last = student.get_submodule(linear[-1])
    if refit_outputs and isinstance(last, MaskedLinear):
        features = pair.features(linear[-1])
        if features is not None:
            refit_to_predictions(last, *features, mask=last.mask)
    return student, [_described(model, name, masks) for name in names]


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a Linear layer and nothing more, so that a masked one can take its place."""
    tensors = {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    return type(layer) is nn.Linear and tensors <= {"weight", "bias"}


def _counts(
    weights: Mapping[str, Tensor],
    sparsity: float | None,
    per_layer: Mapping[str, float],
    granularity: Granularity,
) -> dict[str, Tensor]:
    """Layer -> [stripes] blocks that each stripe keeps; without the layers that stay dense."""
    if granularity.keep is not None:
        n, m = granularity.keep
        return {
            name: torch.full((len(weight),), weight.shape[1] // m * n, device="cpu")
            for name, weight in weights.items()
        }
    counts = {
        name: _largest({name: weights[name]}, share * weights[name].numel(), granularity)[name]
        for name, share in per_layer.items()
        if share > 0
    }
    others = {name: weight for name, weight in weights.items() if name not in per_layer}
    if sparsity is None:
        return {name: counts[name] for name in weights if name in counts}
    total = sum(weight.numel() for weight in weights.values())
    rest = sparsity * total - sum(per_layer[n] * weights[n].numel() for n in per_layer)
    room = sum(weight.numel() for weight in others.values())
    if rest > room:
        raise SimMIMError(
            f"constraints: sparsity={sparsity} cannot be met: per_layer leaves {room} weights to "
            f"remove {rest:.0f} from; raise the sparsities there"
        )
    if rest > 0:
        counts |= _largest(others, rest, granularity)
    return {name: counts[name] for name in weights if name in counts}


def _largest(
    weights: Mapping[str, Tensor], removed: float, granularity: Granularity
) -> dict[str, Tensor]:
    """Layer -> [stripes] blocks that each stripe keeps: those of largest magnitude overall.

    Every layer keeps its largest, since a layer without weights answers the same to every input.
    """
    squares, sizes = {}, {}
    for name, weight in weights.items():
        squares[name] = granularity.blocks(weight.double().square()).sum((1, 3)).cpu()
        # The last block of a stripe counts as whole: another may be kept in its place.
        whole = granularity.blocks(torch.ones(weight.shape, device="cpu")).sum((1, 3))
        sizes[name] = whole.amax(1, keepdim=True).expand_as(whole)
    size = torch.cat([s.flatten() for s in sizes.values()]).long()
    magnitude = (torch.cat([s.flatten() for s in squares.values()]) / size).sqrt()
    lengths = [s.numel() for s in sizes.values()]
    starts = torch.tensor([0, *lengths[:-1]], device="cpu").cumsum(0)
    firsts = torch.stack([part.argmax() for part in torch.split(magnitude, lengths)]) + starts
    room = int(sum(weight.numel() for weight in weights.values()) - removed + 1e-6)
    _check_room(dict(zip(weights, size[firsts].tolist(), strict=True)), room, granularity)
    kept = torch.zeros(len(size), dtype=torch.bool, device="cpu")
    kept[firsts] = True
    room -= int(size[firsts].sum())
    order = magnitude.argsort(descending=True, stable=True)
    order = order[~kept[order]]
    # As many as fit, then of those that are small enough for the rest.
    while len(order := order[size[order] <= room]):
        fits = size[order].cumsum(0) <= room
        kept[order[fits]] = True
        room -= int(size[order[fits]].sum())
        order = order[~fits]
    parts = torch.split(kept, lengths)
    return {
        name: part.view(size.shape).sum(1)
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


def _check_room(firsts: Mapping[str, int], room: int, granularity: Granularity) -> None:
    """Raises SimMIMError unless one block of each layer, of that many weights, may stay."""
    needed = sum(firsts.values())
    if needed > room:
        largest = max(firsts, key=firsts.__getitem__)
        raise SimMIMError(
            f"granularity={granularity.name!r}: the sparsity leaves {room} weights, and one block "
            f"of each layer, without which it is cut off, takes {needed} ({firsts[largest]} in "
            f"{largest!r}); choose smaller blocks or a lower sparsity, or put {largest!r} in "
            "ignored_layers"
        )


def _eliminate(
    sums: NormalEquations, counts: Tensor, granularity: Granularity, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and mask [outputs, inputs], counts[i] blocks in stripe i; and the bias [outputs].

    Without a bias the regression is one through the origin.
    """
    xx, xz = (products.cpu() for products in sums.products(centred=with_bias))
    inputs, outputs = xz.shape
    # The fit is the same in any unit of x^2; in this one nothing is too large or too small.
    scale = xx.diagonal().mean()
    square = sums.xx.diagonal().mean().cpu() / sums.samples
    unit = 1 / scale if scale > _ROUNDING * square else 0
    xx, xz = xx * unit, xz * unit
    damped = xx + RIDGE[nn.Linear] * torch.eye(inputs, device="cpu")
    inverse = torch.linalg.inv(damped)
    full = granularity.blocks((inverse @ xz).T.float()).flatten(2)
    # Inputs that fill up the last block are independent of all others and say nothing.
    padded = torch.eye(full.shape[2], dtype=full.dtype, device="cpu")
    padded[:inputs, :inputs] = inverse
    weight = torch.zeros(outputs, inputs, dtype=torch.float64, device="cpu")
    mask = torch.zeros(outputs, inputs, dtype=torch.bool, device="cpu")
    # Stripes that keep alike numbers of blocks go together.
    stripes = counts.argsort(descending=True, stable=True)
    stripes = stripes[counts[stripes] > 0]
    offsets = torch.arange(granularity.columns, device="cpu")
    for chunk in torch.split(stripes, max(1, _CHUNK // len(padded) ** 2)):
        found = surviving(
            full[chunk],
            padded,
            counts[chunk],
            columns=granularity.columns,
            keep=granularity.keep,
        )
        for stripe, blocks in zip(chunk.tolist(), found, strict=True):
            columns = (blocks[:, None] * granularity.columns + offsets).flatten()
            columns = columns[columns < inputs]
            rows = torch.arange(outputs, device="cpu")[stripe * granularity.rows :][
                : granularity.rows, None
            ]
            block = damped[columns[:, None], columns]
            weight[rows, columns] = torch.linalg.solve(block, xz[columns[:, None], rows.T]).T
            mask[rows, columns] = True
    bias = (sums.z.cpu() - weight @ sums.x.cpu()) / sums.samples
    return weight, bias, mask


def _described(model: nn.Module, name: str, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    before = weighted(model, name).weight.numel()
    after = int(masks[name].sum()) if name in masks else before
    return {"name": name, "before": before, "after": after, "dense": name not in masks}

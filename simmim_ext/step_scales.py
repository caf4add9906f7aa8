"""How large the steps of a student's layers are, beside those of others."""

import math

from torch import Tensor, nn

from .nn import MaskedLinear

# No layer's steps are so many times larger than the learning rate says.
_MOST = 8.0
# Parts of an octave that scales are rounded to, so that many layers have the same.
_PARTS = 4


def step_scales(student: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """How large the student's weights are beside those of the same name in the teacher.

    Adam's steps are of one size whatever that of the weights. Few units that say what many said
    have large weights behind them, and of single weights the large ones are kept: next to all
    others these would hardly move. Small weights, as those of a network not trained yet, take the
    steps that the learning rate says.

    Returns:
        Parameter name -> ratio of the root mean squares, in quarters of an octave and at least 1,
        of weights of two or more axes. A masked weight does not count.
    """
    theirs = _sizes(teacher)
    return {
        name: _rounded(size / theirs[name])
        for name, size in _sizes(student).items()
        if theirs.get(name, 0.0) > 0
    }


def _rounded(ratio: float) -> float:
    ratio = min(max(ratio, 1.0), _MOST)
    return float(2 ** (round(_PARTS * math.log2(ratio)) / _PARTS))


def _sizes(model: nn.Module) -> dict[str, float]:
    masks = {
        f"{name}.weight": layer.mask
        for name, layer in model.named_modules()
        if isinstance(layer, MaskedLinear)
    }
    return {
        name: _root_mean_square(weight.detach(), masks.get(name))
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }


def _root_mean_square(weight: Tensor, mask: Tensor | None) -> float:
    kept = weight.numel() if mask is None else int(mask.count_nonzero())
    squares = weight.float().square()
    total = squares.sum() if mask is None else squares.where(mask, 0).sum()
    return math.sqrt(float(total) / max(kept, 1))

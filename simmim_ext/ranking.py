"""What a criterion is given and what it answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .collect import GroupStatistics, Predictions
from .config import CompressConfig
from .data import Batch
from .forward import ForwardFn
from .units import UnitGroup


@dataclass(frozen=True)
class Ranking:
    """A group's scores [units] float32, higher kept longer, and the units in that order.

    Attributes:
        scores: a score for each unit.
        order: the units.
        divergence: [units + 1] KL in nats to expect with the first k of them, where it is known.
    """

    scores: Tensor
    order: tuple[int, ...]
    divergence: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """What the statistics were gathered from, and how criteria are to read them."""

    model: nn.Module
    groups: tuple[UnitGroup, ...]
    calibration: Iterable[Batch]
    predictions: Predictions
    config: CompressConfig
    forward_fn: ForwardFn | None


# A criterion looks at the whole setting once and then ranks group by group.
Criterion = Callable[[Setting], Callable[[GroupStatistics], Ranking]]


def by_score(scores: Tensor) -> Ranking:
    """Units from the highest score to the lowest, ties by index."""
    scores = scores.float().cpu()
    return Ranking(scores, tuple(scores.argsort(descending=True, stable=True).tolist()))


def by_order(order: Iterable[int]) -> Ranking:
    """Scores that say nothing but the order: the number of units that are kept less long."""
    order = tuple(order)
    scores = torch.empty(len(order), device="cpu")
    scores[list(order)] = torch.arange(len(order) - 1, -1, -1, dtype=torch.float32, device="cpu")
    return Ranking(scores, order)

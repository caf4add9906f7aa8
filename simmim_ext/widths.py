"""Layer widths under a budget."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .errors import SimMIMError, warn

Widths = dict[str, int]

BUDGETS = ("units", "params", "flops", "bytes", "latency")
_FRACTIONS_ONLY = ("latency",)

_ROUNDING = 1e-12

# How often prices are set anew.
_PRICE_ROUNDS = 12


class Count(int):
    """A number of units, parameters or the like, whatever it is: a plain 1 is a fraction."""


class Goal(Count):
    """What a step before the last makes for; where the least widths exceed it, it takes those."""


def is_count(value: Any) -> bool:
    """Whether a constraint's value is a number of things, and not a fraction of them."""
    plain = isinstance(value, int) and not isinstance(value, bool) and value > 1
    return plain or isinstance(value, Count)


def share_of(share: float, whole: float) -> int:
    """So much of a number of things, rounded down; 1 / 49 of 49 is 1 whatever floats make of it."""
    return int(share * whole * (1 + _ROUNDING))


def check_constraints(constraints: Mapping[str, Any]) -> dict[str, float | int]:
    """The constraints as given, or an error that says what they must be.

    Each of "units", "params", "flops", "bytes" and "latency" is a fraction of the original kept,
    in (0, 1], or for counts an integer greater than 1.
    """
    if not isinstance(constraints, Mapping) or not constraints:
        raise ValueError(
            f"constraints must be a dict with at least one of {', '.join(BUDGETS)}, "
            f"got {constraints!r}"
        )
    for name, value in constraints.items():
        if name not in BUDGETS:
            where = "; compress takes it for a granularity of weights" if name == "sparsity" else ""
            raise ValueError(f"constraints: {name!r} is none of {', '.join(BUDGETS)}{where}")
        if is_count(value) and name not in _FRACTIONS_ONLY:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            counts = "" if name in _FRACTIONS_ONLY else " or an integer greater than 1"
            raise ValueError(
                f"constraints: {name} must be a fraction kept in (0, 1]{counts}, got {value!r}"
            )
    return dict(constraints)


def warn_of_counts(constraints: Mapping[str, Any], original: Callable[[str], float | int]) -> None:
    """Warns of counts above what the original has, by name: they are no ceilings."""
    for name, value in constraints.items():
        if is_count(value) and not isinstance(value, Count) and value > original(name):
            warn(
                f"constraints: {name}={value:,} limits nothing: the model has {original(name):,}; "
                "give less than that, or a fraction kept in (0, 1]"
            )


def allocate(
    priorities: Mapping[str, Tensor],
    fits: Callable[[Widths], bool],
    *,
    round_to: int = 1,
    fill: bool = True,
) -> Widths | None:
    """The widest layers that fit, grown in the order of the units' priorities.

    All layers start at their least width (one unit, or ``round_to``), and the units of all
    layers enter in the order of their priority as long as the whole fits; what room is left
    then goes to single steps of whichever layers still fit, the most important first.

    Args:
        priorities: layer -> [units]; the i-th highest of a layer is the priority of its width
            growing to i.
        fits: whether widths are within the budget; must not turn true again as widths grow.
        round_to: widths are multiples of it, or whole layers.
        fill: whether to use up what room is left; senseless where ``fits`` is noisy.

    Returns:
        layer -> width, or None where not even the least widths fit.
    """
    ranked = {name: sorted(map(float, values), reverse=True) for name, values in priorities.items()}
    entries = sorted(
        (-value, place, name)
        for name, values in ranked.items()
        for place, value in enumerate(values)
    )

    def widths(entered: int) -> Widths:
        counts = dict.fromkeys(ranked, 0)
        for _, _, name in entries[:entered]:
            counts[name] += 1
        return {name: rounded(count, len(ranked[name]), round_to) for name, count in counts.items()}

    if not fits(widths(0)):
        return None
    low, high = 0, len(entries) + 1  # widths(low) fit, widths(high) do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(widths(middle)) else (low, middle)
    found = widths(low)
    return _filled(found, ranked, fits, round_to) if fill else found


def allocate_by_loss(
    losses: Mapping[str, Tensor],
    prices: Callable[[Widths], Mapping[str, float]],
    seems_to_fit: Callable[[Widths], bool],
    fits: Callable[[Widths], bool],
    *,
    round_to: int = 1,
    fill: bool = True,
) -> Widths | None:
    """The widths of the least total loss that fit, by the loss that a unit saves for its price.

    What a unit costs depends on the widths of other layers: prices are taken at the widths that
    the prices before led to, and those of the least loss are kept.

    Args:
        losses: layer -> [units + 1] loss at each width.
        prices: what another unit of each layer costs at given widths.
        seems_to_fit: an estimate of ``fits`` that costs nothing.
        fits, round_to, fill: as in ``allocate``.
    """

    def worth(price: Mapping[str, float]) -> dict[str, Tensor]:
        return {n: -loss.diff() / max(price[n], 1e-30) for n, loss in losses.items()}

    price = prices({name: len(loss) - 1 for name, loss in losses.items()})
    best, least = price, math.inf
    for _ in range(_PRICE_ROUNDS):
        widths = allocate(worth(price), seems_to_fit, round_to=round_to, fill=False)
        if widths is None:
            break
        total = sum(float(losses[name][width]) for name, width in widths.items())
        if total < least:
            best, least = price, total
        new = prices(widths)
        price = {name: math.sqrt(price[name] * max(new[name], 1e-30)) for name in price}
    return allocate(worth(best), fits, round_to=round_to, fill=fill)


def _filled(
    widths: Widths,
    ranked: Mapping[str, list[float]],
    fits: Callable[[Widths], bool],
    round_to: int,
) -> Widths:
    open_layers = {name for name in widths if widths[name] < len(ranked[name])}
    while open_layers:
        # The next unit of highest priority; a layer that does not fit once never will again.
        name = max(open_layers, key=lambda n: (ranked[n][widths[n]], n))
        wider = widths | {name: min(widths[name] + round_to, len(ranked[name]))}
        if fits(wider):
            widths = wider
        else:
            open_layers.discard(name)
        if widths[name] == len(ranked[name]):
            open_layers.discard(name)
    return widths


def rounded(count: int, units: int, round_to: int) -> int:
    """A multiple of round_to at or below the count, at least one step, at most all units."""
    if count >= units:
        return units
    return min(units, max(round_to, count // round_to * round_to))


def unreachable(
    name: str, value: float | int, least: float, original: float, round_to: int = 1
) -> SimMIMError:
    """The error for a budget that even the smallest model exceeds."""
    lower = f"lower round_to={round_to}, " if round_to > 1 else ""
    return SimMIMError(
        f"constraints: {name}={value} cannot be met: with every layer at its least width the model "
        f"has {least:g} of {original:g} ({least / original:.3g}); raise the budget, {lower}or "
        "ignore fewer layers"
    )

"""How a budget and the epochs are spread over the pruning steps."""

from collections.abc import Collection, Mapping
from typing import Any

from .storage import Json
from .widths import Count, Goal, is_count, share_of, warn_of_counts

Constraints = Mapping[str, Any]


def budgets(
    constraints: Constraints, originals: Mapping[str, Any], schedule: str, steps: int
) -> list[dict[str, Any]]:
    """The constraints of every step; the last step's are the ones asked for.

    "iterative" keeps the same share of what is left in every step; "cubic" removes most in the
    first ones: kept_i = kept + (1 - kept) (1 - i / steps)^3 (Zhu & Gupta, 2017). All are counts,
    since each step prunes what the step before it left; those before the last are goals.

    Args:
        constraints: name -> fraction or count, or a dict of such by layer.
        originals: name -> count of the original model, for several steps; or by layer.
        schedule: "one-shot", "iterative" or "cubic".
        steps: number of steps.

    Raises:
        ValueError: several steps to a latency.
    """
    if steps > 1 and "latency" in constraints:
        raise ValueError(
            f'compress: a latency budget needs schedule="one-shot", got {schedule!r}: how much '
            "faster a step before the last should be is not known; give flops as well"
        )
    if steps == 1:
        return [dict(constraints)]
    warn_of_counts(constraints, originals.__getitem__)
    return [
        {
            name: _budget(value, originals[name], schedule, step / steps)
            for name, value in constraints.items()
        }
        for step in range(1, steps + 1)
    ]


def sparsities(
    constraints: Constraints, schedule: str, steps: int, fixed: float | None
) -> list[dict[str, Any]]:
    """The same for weights: every step's sparsity of the whole, not of what a step left.

    What a step before zeroed has no claim on being zero: each step chooses anew.

    Args:
        constraints: "sparsity", and that of layers by name.
        schedule, steps: as above.
        fixed: the sparsity that the granularity makes by itself, as 2:4 does; None: there is none.
    """
    asked = dict(constraints) if fixed is None else {"sparsity": fixed}
    return [
        {name: _sparsity(value, schedule, step / steps) for name, value in asked.items()}
        for step in range(1, steps + 1)
    ]


def without_singles(
    constraints: Constraints, layers: list[Json], groups: Collection[str]
) -> Constraints:
    """A step's constraints for the groups that are left: a layer down to one unit is none."""
    singles = sum(layer["after"] for layer in layers if layer["name"] not in groups)
    if singles == 0 or "units" not in constraints:
        return constraints
    units = constraints["units"]
    return {**constraints, "units": type(units)(units - singles)}


def composed(earlier: list[Json], layers: list[Json]) -> list[Json]:
    """A step's layers as seen from the original model, with those that are down to one unit."""
    before = {layer["name"]: layer for layer in earlier}
    after = {
        layer["name"]: {
            **before[layer["name"]],
            "after": layer["after"],
            "information": before[layer["name"]]["information"] * layer["information"],
            "kept": [before[layer["name"]]["kept"][unit] for unit in layer["kept"]],
        }
        if layer["name"] in before
        else layer
        for layer in layers
    }
    return list((before | after).values())


def epochs_of_steps(epochs: int, steps: int) -> list[int]:
    """Equal shares of the epochs; the last step also gets the remainder."""
    share = epochs // steps
    return [share] * (steps - 1) + [epochs - share * (steps - 1)]


def _budget(value: Any, original: Any, schedule: str, done: float) -> Any:
    if isinstance(value, Mapping):
        return {
            layer: _budget(own, original[layer], schedule, done) for layer, own in value.items()
        }
    kept = _kept(value / original if is_count(value) else float(value), schedule, done)
    # A layer keeps at least one unit, and two before the last step: a single one is no group.
    left = share_of(kept, original)
    return Count(max(left, 1)) if done == 1 else Goal(max(left, 2))


def _sparsity(value: Any, schedule: str, done: float) -> Any:
    if isinstance(value, Mapping):
        return {layer: _sparsity(own, schedule, done) for layer, own in value.items()}
    return value if done == 1 else 1 - _kept(1 - value, schedule, done)


def _kept(kept: float, schedule: str, done: float) -> float:
    """The share of the whole that is left when that share of the steps is done."""
    return kept**done if schedule == "iterative" else kept + (1 - kept) * (1 - done) ** 3

"""What a budget may say: of the whole model, and of single layers."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .config import CompressConfig
from .granularity import Granularity
from .widths import check_constraints, is_count

PER_LAYER = "per_layer"

# Settings that say how units are removed; weights are removed in one way.
_OF_UNITS = ("criterion", "allocation", "reconstruct")


def plain_numbers(constraints: Any) -> Any:
    """Constraints, or a number, with Python's for those of numpy and others, which are no JSON."""
    if isinstance(constraints, Mapping):
        return {name: plain_numbers(value) for name, value in constraints.items()}
    if isinstance(constraints, bool):
        return constraints
    if isinstance(constraints, Integral):
        return int(constraints)
    return float(constraints) if isinstance(constraints, Real) else constraints


def check_budget(
    granularity: Granularity, constraints: Mapping[str, Any], config: CompressConfig, round_to: int
) -> None:
    """Raises ValueError where the constraints, config or round_to suit no such granularity."""
    check_round_to(round_to)
    if granularity.name == "unit":
        split_budget(constraints)
        return
    if round_to != 1:
        raise ValueError(
            f"compress: round_to is for units, and granularity={granularity.name!r} has none; "
            f"leave it at 1, got {round_to!r}"
        )
    for name in _OF_UNITS:
        value, default = getattr(config, name), getattr(CompressConfig, name)
        if value != default:
            raise ValueError(
                f"compress: {name} is for units, and granularity={granularity.name!r} has none; "
                f"leave it at {default!r}, got {value!r}"
            )
    _check_sparsity(granularity, constraints)


def check_round_to(round_to: int) -> None:
    """Raises ValueError unless it is an integer of at least 1."""
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(f"round_to must be an integer of at least 1, got {round_to!r}")


def split_budget(
    constraints: Mapping[str, Any],
) -> tuple[dict[str, float | int], dict[str, float | int]]:
    """The ceilings of the whole model, and the kept share or count of layers by name or pattern.

    Raises:
        ValueError: the constraints are none for units.
    """
    if not isinstance(constraints, Mapping) or PER_LAYER not in constraints:
        return check_constraints(constraints), {}
    own = _per_layer(constraints)
    for pattern, value in own.items():
        if not is_count(value) and not (_is_number(value) and 0 < value <= 1):
            raise ValueError(
                f"constraints: per_layer[{pattern!r}] must be a fraction of units kept in (0, 1] "
                f"or an integer greater than 1, got {value!r}"
            )
    rest = {name: value for name, value in constraints.items() if name != PER_LAYER}
    return (check_constraints(rest) if rest else {}), own


def _per_layer(constraints: Mapping[str, Any]) -> dict[str, Any]:
    own = constraints[PER_LAYER]
    if not isinstance(own, Mapping) or not own or not all(isinstance(name, str) for name in own):
        raise ValueError(
            "constraints: per_layer must be a dict of layer names or patterns to values, got "
            f"{own!r}"
        )
    return dict(own)


def _check_sparsity(granularity: Granularity, constraints: Mapping[str, Any]) -> None:
    given = dict(constraints) if isinstance(constraints, Mapping) else {}
    fixed = granularity.sparsity
    if fixed is not None:
        if isinstance(constraints, Mapping) and given in ({}, {"sparsity": fixed}):
            return
        raise ValueError(
            f"compress: granularity={granularity.name!r} makes the sparsity {fixed:g}; constraints "
            f"must be {{'sparsity': {fixed:g}}} or {{}}, got {constraints!r}"
        )
    own = _per_layer(given) if PER_LAYER in given else {}
    for pattern, value in own.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise ValueError(
                f"constraints: per_layer[{pattern!r}] must be a fraction of weights removed in "
                f"[0, 1), got {value!r}"
            )
    sparsity = given.get("sparsity")
    fine = isinstance(sparsity, float) and 0 < sparsity < 1
    if not given or set(given) - {"sparsity", PER_LAYER} or ("sparsity" in given and not fine):
        raise ValueError(
            f'compress: with granularity="{granularity.name}" constraints must be {{"sparsity": '
            f"fraction of weights removed, in (0, 1)}}, got {constraints!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""How a budget and the epochs are spread over the pruning steps."""

from collections.abc import Mapping
from typing import Any

Constraints = Mapping[str, Any]


def budgets(
    constraints: Constraints, originals: Mapping[str, Any], schedule: str, steps: int
) -> list[dict[str, Any]]:
    """The constraints of every step; the last step's are the ones asked for.

    "iterative" keeps the same share of what is left in every step; "cubic" removes most in the
    first ones: kept_i = kept + (1 - kept) (1 - i / steps)^3 (Zhu & Gupta, 2017). Steps before the
    last are counts, since each prunes what the step before it left.

    Args:
        constraints: name -> fraction or count, or a dict of such by layer.
        originals: name -> count of the original model, for several steps; or by layer.
        schedule: "one-shot", "iterative" or "cubic".
        steps: number of steps.
    """
    if steps > 1 and "latency" in constraints:
        raise ValueError(
            f'compress: a latency budget needs schedule="one-shot", got {schedule!r}: how much '
            "faster a step before the last should be is not known; give flops as well"
        )
    return [
        {
            name: _budget(value, originals[name], schedule, step / steps)
            for name, value in constraints.items()
        }
        if steps > 1
        else dict(constraints)
        for step in range(1, steps + 1)
    ]


def epochs_of_steps(epochs: int, steps: int) -> list[int]:
    """Equal shares of the epochs; the last step also gets the remainder."""
    share = epochs // steps
    return [share] * (steps - 1) + [epochs - share * (steps - 1)]


def _budget(value: Any, original: Any, schedule: str, done: float) -> Any:
    if isinstance(value, Mapping):
        return {
            layer: _budget(own, original[layer], schedule, done) for layer, own in value.items()
        }
    kept = value / original if isinstance(value, int) and value > 1 else float(value)
    kept = kept**done if schedule == "iterative" else kept + (1 - kept) * (1 - done) ** 3
    # An integer of 1 would be read as the fraction 1.
    return max(int(kept * original + 1e-9), 2)

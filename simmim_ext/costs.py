"""What the model would cost at other widths; latency is measured until it can be relied on."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .data import Batch
from .equivalence import proved_removal
from .errors import SimMIMError, warn
from .forward import ForwardFn
from .measure import count_bytes, count_flops, count_params, latency_conditions, measure_latency
from .modes import device_of
from .removal import remove_units
from .scoring import Scores
from .sharing import shapes_of
from .widths import Widths

# Seconds that each candidate's latency is measured at first; and where that is not enough, and for
# the widths that are chosen.
_SECONDS = 0.2
LONG_SECONDS = 1.0

# How far the latency reached may be from the one asked for, as a share of it.
TOLERANCE = 0.1

# A share of units is small that is less than this part of the latency asked for, and what does not
# depend on widths is large if it takes more than this part.
_FEW = 0.5

_ADVICE = "raise it, give the batch that you serve as example_inputs, or set flops instead"

_Key = tuple[tuple[str, int], ...]


class Costs:
    """What models of given widths cost; each is built once and measured as a user would.

    Parameters are counted on shapes alone. Latency is relative to the original's, measured in turn
    with it.
    """

    def __init__(
        self, model: nn.Module, scores: Scores, example: Batch, forward_fn: ForwardFn | None
    ) -> None:
        self._model, self._scores = model, scores
        self._example, self._forward_fn = example, forward_fn
        self._original: dict[str, float] = {}
        self._shapes = shapes_of(model)
        self._seconds = _SECONDS
        self._milliseconds = 0.0  # of the original, as measured last
        self._latencies: dict[_Key, float] = {}

    def measure_for(self, seconds: float) -> None:
        """Measures latency for so long from now on, and forgets the ones there are."""
        self._seconds = seconds
        self._latencies.clear()

    def original(self, name: str) -> float:
        """The cost of the model as it is."""
        if name == "latency":
            return 1.0
        if name not in self._original:
            units = sum(group.units for group in self._scores.groups)
            self._original[name] = units if name == "units" else self._count(name, self._model)
        return self._original[name]

    def of(self, name: str, widths: Widths) -> float:
        """The cost of the model at these widths."""
        if name == "units":
            return sum(widths.values())
        if name == "params":
            return count_params(self._smaller(self._shapes, widths))
        if name != "latency":
            return self._tried(widths, partial(self._count, name))
        key = tuple(sorted(widths.items()))
        if key not in self._latencies:
            self._latencies[key] = self._latency(widths, self._seconds)
        return self._latencies[key]

    def unsettled(self, widths: Widths, wanted: float, *, alone: bool) -> float | None:
        """None where the latency at these widths is as wanted, else what it is.

        It is as wanted within the tolerance; or shorter, if the next wider model that was tried
        does take too long, or there are other budgets, which can be why.
        """
        reached = self._latency(widths, LONG_SECONDS)
        if reached > (1 + TOLERANCE) * wanted:
            return reached
        if reached < (1 - TOLERANCE) * wanted and alone:
            units = sum(widths.values())
            wider = [key for key in self._latencies if sum(width for _, width in key) > units]
            if wider:
                following = dict(min(wider, key=lambda key: sum(width for _, width in key)))
                if self._latency(following, LONG_SECONDS) <= wanted:
                    return reached
        return None

    def latency_unmet(self, wanted: float, reached: float) -> SimMIMError:
        """The error for a latency that was not reached."""
        why = (
            "models of the least widths take that long"
            if reached > wanted
            else "measurements disagree with each other, as on a busy machine"
        )
        return SimMIMError(
            f"constraints: latency={wanted:g} cannot be met within {TOLERANCE:.0%}: the closest "
            f"that was reached is {reached:.3g} of the original's {self._conditions()}, where "
            f"{why}; {_ADVICE}"
        )

    def warn_of_overhead(self, wanted: float, widths: Widths, least: Widths) -> None:
        """Warns where few units are kept because models of the least widths take long as well."""
        kept, units = sum(widths.values()), self.original("units")
        overhead = self.of("latency", least)
        if overhead > _FEW * wanted and kept < _FEW * wanted * units:
            warn(
                f"constraints: latency={wanted:g} leaves {kept:,} of {units:,} units: models of "
                f"the least widths still take {overhead:.3g} of the original's "
                f"{self._conditions()}, which does not depend on widths; {_ADVICE}"
            )

    def _conditions(self) -> str:
        at = latency_conditions(self._example)
        return (
            f"{self._milliseconds:.3g} ms (batch {at['batch']}, {at['threads']} threads, "
            f"{device_of(self._model)})"
        )

    def _smaller(self, model: nn.Module, widths: Widths) -> nn.Module:
        return remove_units(model, self._scores.groups, self._kept(widths))[0]

    def _kept(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        return {layer: self._scores.order[layer][:width] for layer, width in widths.items()}

    def _tried(self, widths: Widths, cost: Callable[[nn.Module], float]) -> float:
        """What the model costs at these widths.

        Raises SimMIMError where it does not run: by the removal, if that is why, not by the data.
        """
        try:
            return cost(self._smaller(self._model, widths))
        except SimMIMError:
            groups, kept = self._scores.groups, self._kept(widths)
            proved_removal(self._model, groups, kept, self._example, forward_fn=self._forward_fn)
            raise

    def _count(self, name: str, model: nn.Module) -> float:
        if name == "params":
            return count_params(model)
        if name == "flops":
            return count_flops(model, self._example, self._forward_fn)
        return count_bytes(model)

    def _latency(self, widths: Widths, seconds: float) -> float:
        def relative(smaller: nn.Module) -> float:
            models = [smaller, self._model]
            new, old = measure_latency(models, self._example, self._forward_fn, seconds=seconds)
            self._milliseconds = old
            return new / old

        return self._tried(widths, relative)

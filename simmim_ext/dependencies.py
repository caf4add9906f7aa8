"""torch-pruning's own graph of a model, and the groups of channels in it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch
from .errors import SimMIMError
from .forward import ForwardFn, forward
from .layers import unsupported_reason
from .outputs import returned
from .sources import Sources


class UntraceableError(SimMIMError):
    """torch-pruning cannot follow the model's units."""


def followed(graph: Any, kept: list[nn.Module], ignored: frozenset[str]) -> Iterator[Any]:
    """torch-pruning's groups of channels."""
    try:
        yield from graph.get_all_groups(ignored_layers=kept)
    except LookupError as error:  # its own, about channels where there are none
        odd = [n for n, m in graph.model.named_modules() if n in ignored and unsupported_reason(m)]
        raise UntraceableError(
            "trace_units: the model's units could not be followed, as happens into a GRU; put the "
            f"layers that are read by {' and '.join(map(repr, odd)) or 'such a layer'} in "
            "ignored_layers as well"
        ) from error


def dependencies(
    model: nn.Module, batch: Batch, forward_fn: ForwardFn | None
) -> tuple[Any, Sources]:
    """torch-pruning's graph of the model, in which inputs and outputs have nodes of their own."""
    import torch_pruning as tp

    failure: BaseException | None = None
    for sources in (Sources(), Sources(channels=1), Sources(channels=-1)):
        graph = tp.DependencyGraph()
        try:
            with sources.within(model, batch), torch.enable_grad():
                graph.build_dependency(
                    model,
                    example_inputs=batch,
                    forward_fn=lambda network, example, sources=sources: [
                        output * 1.0 for output in _traced(network, sources(example), forward_fn)
                    ],
                    verbose=False,
                )
            return graph, sources
        except SimMIMError as error:
            # The model ran before: if it fails here, a hook of torch-pruning's did.
            if error.__cause__ is None:
                raise
            failure = failure or error.__cause__
        except Exception as error:
            failure = failure or error
    raise UntraceableError(
        "trace_units: torch-pruning cannot follow the units of this model "
        f"({type(failure).__name__}: {failure}), as happens with shuffled channels, or attention "
        "that splits a projection in a way of its own; remove single weights instead, by "
        'compress(granularity="weight")'
    ) from failure


def run_example(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> Tensor:
    """``forward``, whose errors are about example_inputs here."""
    try:
        return forward(model, batch, forward_fn)
    except SimMIMError as error:
        raise SimMIMError(f"example_inputs: {error}") from error


def _traced(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> Iterator[Tensor]:
    """The outputs that units can be followed to, but for losses, which have no width."""
    first, *others = returned(model, batch, forward_fn)
    yield first
    yield from (other for other in others if other.requires_grad and other.dim() > 0)

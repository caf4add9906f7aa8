"""What runs when in a model's forward pass, and who reads what its modules leave."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .data import Batch
from .forward import ForwardFn, forward
from .modes import evaluating
from .readers import Readers
from .remembered import tensors

# Makes another forward function of a module's own.
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]

_SIMPLE = (int, float, bool, str, type(None))


@dataclass
class _Span:
    """When a module ran, in events of the forward pass."""

    begin: int
    end: int = -1
    calls: int = 0
    simple: bool = True


class Course:
    """The course of one forward pass; with fewer units a model takes the same.

    Args:
        model: the model.
        example: a small batch.
        forward_fn: as in ``score``.
    """

    def __init__(self, model: nn.Module, example: Batch, forward_fn: ForwardFn | None) -> None:
        self._spans: dict[str, _Span] = {}
        clock, readers, outputs = count(), Readers({}), []

        def watch(name: str) -> Wrapper:
            def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    span = self._spans.setdefault(name, _Span(next(clock)))
                    span.calls += 1
                    readers.running.append(name)
                    readers.note((args, options))  # It may read by other functions than torch's.
                    output = original(*args, **options)
                    if _is_simple(output):
                        # Copies, since what it returns may be what a module in it has returned.
                        output = with_tensors(output, torch.clone)
                        readers.owners.update({id(leaf): name for leaf in tensors(output)})
                        outputs.append(output)  # Once a tensor is gone its id is another's.
                    else:
                        span.simple = False
                    readers.running.pop()
                    span.end = next(clock)
                    return output

                return call

            return wrap

        every = {name: watch(name) for name, _ in model.named_modules()}
        with torch.no_grad(), evaluating(model), replaced(model, every), readers:
            forward(model, example, forward_fn)
        self._read = readers.found

    def calls(self, names: Iterable[str]) -> int:
        """How often the modules ran in all."""
        return sum(self._spans[name].calls for name in names)

    def begin(self, names: Iterable[str]) -> int:
        """When the first of these modules or parameters was used."""
        return min(map(self._first_use, names), default=0)

    def ended(self, time: int) -> frozenset[str]:
        """The modules that ended before, and whose outputs can stand for running them."""
        return frozenset(
            name
            for name, span in self._spans.items()
            if span.calls == 1 and span.simple and 0 <= span.end < time
        )

    def still_read(self, done: frozenset[str]) -> set[str]:
        """Of these modules those whose outputs are read by others than these."""
        return {
            name
            for name in done
            if any(done.isdisjoint(running) for running in self._read.get(name, ()))
        }

    def _first_use(self, name: str) -> int:
        """When the module began, or the smallest around it that ran."""
        while name and name not in self._spans:
            name = name.rpartition(".")[0]
        return self._spans[name].begin if name in self._spans else 0


def largest(names: frozenset[str]) -> frozenset[str]:
    """Those modules that are inside none of the others."""
    return frozenset(n for n in names if not any(a in names for a in _ancestors(n)))


@contextmanager
def replaced(model: nn.Module, wrappers: Mapping[str, Wrapper]) -> Iterator[None]:
    """Wraps the forward functions of the modules for the block."""
    before = []
    try:
        for name, wrap in wrappers.items():
            module = model.get_submodule(name)
            before.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = wrap(module.forward)
        yield
    finally:
        for attributes, own in before:
            if own is None:
                del attributes["forward"]
            else:
                attributes["forward"] = own


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it changed."""
    return pytree.tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, value)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _is_simple(output: Any) -> bool:
    return all(isinstance(leaf, (Tensor, *_SIMPLE)) for leaf in pytree.tree_leaves(output))

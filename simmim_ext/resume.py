"""Runs a model over the same batches again and again, each time further: what is done is kept.

Layers are refitted from input to output, and each wants its input on all batches. To start every
run at the model's input would cost as many forward passes as there are layers. Instead the outputs
of modules that ended before the layer are kept, as far as anything still reads them, and the next
run takes them instead of computing them anew.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .answers import PASS_BYTES
from .data import Batch, ForwardFn, evaluating, forward, to_device
from .readers import Readers
from .recording import Recorder

Calls = Mapping[str, list[tuple[Tensor, Tensor]]]

# Bytes of outputs that are kept of one model; beyond, more is computed anew.
MOST_KEPT = PASS_BYTES // 2

# Makes another forward function of a module's own.
_Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]

_SIMPLE = (int, float, bool, str, type(None))


@dataclass
class _Span:
    """When a module ran, in events of the example's forward pass."""

    begin: int
    end: int = -1
    calls: int = 0
    simple: bool = True


class Resumed:
    """A model and batches; layers' calls on them, each asked for in the order in which they run.

    Args:
        model: its layers may change between runs, if they were asked for before.
        data: the batches.
        example: a small batch, on which it is seen what runs when.
        device: where the model is.
        forward_fn: as in ``score``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Batch],
        example: Batch,
        device: torch.device,
        forward_fn: ForwardFn | None,
    ) -> None:
        self._model, self._data, self._example = model, data, example
        self._device, self._forward_fn = device, forward_fn
        self._spans = self._observed()
        # Modules that are not run again, each with an output that nobody can read, and the
        # outputs by batch of those that are still read.
        self._done: dict[str, Any] = {}
        self._kept: dict[str, list[Any]] = {}

    def run(self, names: Iterable[str], *, to_the_end: bool) -> Iterator[tuple[Calls, Tensor]]:
        """For each batch the calls of the layers, and the model's outputs.

        Unless it goes to the end, a forward pass stops after the layers, without outputs.
        """
        names = list(names)
        recorder = Recorder(self._model, names)
        done, read = self._still_read(self._before(names))
        wanted = read - set(self._kept)
        found: dict[str, list[Any]] = {name: [] for name in wanted}
        size = _bytes(self._kept)
        most = None if to_the_end else sum(self._spans[name].calls for name in names)
        outputs = torch.empty(0)
        for index, batch in enumerate(self._data):
            given = {name: self._kept[name][index] for name in self._kept}
            seen: dict[str, Any] = {}
            with (
                torch.no_grad(),
                evaluating(self._model),
                self._replaced({**_stubs({**self._done, **given}), **_notes(wanted, seen)}),
                recorder.recording(most),
            ):
                outputs = forward(self._model, to_device(batch, self._device), self._forward_fn)
            yield recorder.calls, outputs
            size += _bytes(seen)
            if size > MOST_KEPT or set(seen) != wanted:
                wanted = set()  # What was done before is all that is kept.
            for name in wanted:
                found[name].append(seen[name])
        if wanted == set(found):
            self._kept = {n: outs for n, outs in {**self._kept, **found}.items() if n in read}
            self._done = done

    def _before(self, names: Sequence[str]) -> frozenset[str]:
        """The largest modules that end before the first of the layers begins."""
        first = min(self._spans[name].begin for name in names)
        ended = {
            name
            for name, span in self._spans.items()
            if span.calls == 1 and span.simple and 0 <= span.end < first
        }
        return frozenset(n for n in ended if not any(a in ended for a in _ancestors(n)))

    def _observed(self) -> dict[str, _Span]:
        spans: dict[str, _Span] = {}
        clock = iter(range(1 << 62))

        def watch(name: str) -> _Wrapper:
            def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    span = spans.setdefault(name, _Span(next(clock)))
                    span.calls += 1
                    output = original(*args, **options)
                    span.end = next(clock)
                    span.simple &= _is_simple(output)
                    return output

                return call

            return wrap

        every = {name: watch(name) for name, _ in self._model.named_modules()}
        with torch.no_grad(), evaluating(self._model), self._replaced(every):
            forward(self._model, self._example, self._forward_fn)
        return spans

    def _still_read(self, done: Iterable[str]) -> tuple[dict[str, Any], set[str]]:
        """The modules with outputs like theirs that nobody can read, and those that are read.

        What only modules among them read is not, up to the model's end.
        """
        seen: dict[str, Any] = {}
        with torch.no_grad(), evaluating(self._model):
            with self._replaced(_notes(done, seen)):
                forward(self._model, self._example, self._forward_fn)
            owners = {
                id(leaf): name
                for name, output in seen.items()
                for leaf in pytree.tree_leaves(output)
                if isinstance(leaf, Tensor)
            }
            with (
                Readers(owners) as readers,
                # A module may read by other functions than torch's.
                self._replaced({n: readers.watch for n, _ in self._model.named_modules()}),
                self._replaced(_stubs(seen, copy=False)),
            ):
                forward(self._model, self._example, self._forward_fn)
        nobodys = torch.empty(0, device="meta")
        return _with_tensors(seen, lambda _: nobodys), readers.found

    @contextmanager
    def _replaced(self, wrappers: Mapping[str, _Wrapper]) -> Iterator[None]:
        """Wraps the forward functions of the modules for the block."""
        before = []
        try:
            for name, wrap in wrappers.items():
                module = self._model.get_submodule(name)
                before.append((vars(module), vars(module).get("forward")))
                vars(module)["forward"] = wrap(module.forward)
            yield
        finally:
            for attributes, own in before:
                if own is None:
                    del attributes["forward"]
                else:
                    attributes["forward"] = own


def _stubs(outputs: Mapping[str, Any], *, copy: bool = True) -> dict[str, _Wrapper]:
    """Module -> what makes its forward return that output."""

    def stub(output: Any) -> _Wrapper:
        def call(*args: Any, **options: Any) -> Any:
            # A function in place must not change what is kept.
            return _with_tensors(output, torch.clone) if copy else output

        return lambda _: call

    return {name: stub(output) for name, output in outputs.items()}


def _notes(names: Iterable[str], seen: dict[str, Any]) -> dict[str, _Wrapper]:
    """Module -> what leaves a copy of its output in ``seen``."""

    def note(name: str) -> _Wrapper:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                output = original(*args, **options)
                seen[name] = _with_tensors(output, torch.clone)
                return output

            return call

        return wrap

    return {name: note(name) for name in names}


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, value)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _is_simple(output: Any) -> bool:
    return all(isinstance(leaf, (Tensor, *_SIMPLE)) for leaf in pytree.tree_leaves(output))


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))

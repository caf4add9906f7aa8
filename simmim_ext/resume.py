"""Runs a model over the same batches again and again, each time further: what is done is kept.

Layers are refitted from input to output, and each wants its input on all batches. To start every
run at the model's input would cost as many forward passes as there are layers. Instead the outputs
of modules that ended before the layer are kept, as far as anything still reads them, and the next
run takes them instead of computing them anew.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .answers import PASS_BYTES
from .course import Course, Wrapper, largest, replaced, with_tensors
from .data import Batch, ForwardFn, device_of, evaluating, forward, to_device
from .recording import Recorder
from .remembered import bytes_of

Calls = Mapping[str, list[tuple[Tensor, Tensor]]]

# Module -> its output by batch.
Outputs = Mapping[str, Sequence[Any]]

# Bytes of outputs that are kept of one model; beyond, more is computed anew.
MOST_KEPT = PASS_BYTES // 2

# Stands for a tensor that nobody can read.
_NOBODYS = torch.empty(0, device="meta")


class Resumed:
    """A model and batches; layers' calls on them, best asked for in the order in which they run.

    Args:
        model: its layers may change between runs, if they were asked for before.
        data: the batches.
        course: the model's, or that of the one with more units that it came from.
        forward_fn: as in ``score``.
        kept: what another model kept that is the same up to there.

    Attributes:
        model: the model.
        kept: modules that are not run again, with their outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Batch],
        course: Course,
        forward_fn: ForwardFn | None,
        kept: Outputs | None = None,
    ) -> None:
        self.model, self.kept = model, kept or {}
        self._data, self._course, self._forward_fn = data, course, forward_fn
        self._device = device_of(model)

    def run(self, names: Iterable[str], *, to_the_end: bool) -> Iterator[tuple[Calls, Tensor]]:
        """For each batch the calls of the layers, and the model's outputs.

        Unless it goes to the end, a forward pass stops after the layers, without outputs.
        """
        names = list(names)
        ended = self._course.ended(self._course.begin(names))
        if not ended.issuperset(self.kept):  # It went further before.
            self.kept = {}
        done = largest(ended)
        read = self._course.still_read(done)
        new = done - set(self.kept)
        found: dict[str, list[Any]] = {name: [] for name in new}
        recorder = Recorder(self.model, names)
        most = None if to_the_end else self._course.calls(names)
        size = bytes_of(self.kept)
        outputs = torch.empty(0)
        for index in range(len(self._data)):
            seen: dict[str, Any] = {}
            with recorder.recording(most):
                outputs = self._forward(index, _notes(new, read, seen))
            yield recorder.calls, outputs
            size += bytes_of(seen)
            if size > MOST_KEPT or set(seen) != new:
                new = frozenset()  # What was done before is all that is kept.
            for name in new:
                found[name].append(seen[name])
        if new == set(found):
            self.kept = {
                name: outputs if name in read else with_tensors(outputs, lambda _: _NOBODYS)
                for name, outputs in {**self.kept, **found}.items()
                if name in done
            }

    def reach(self, names: Iterable[str]) -> Outputs:
        """What is kept after a run up to the layers."""
        for _ in self.run(names, to_the_end=False):
            pass
        return self.kept

    def outputs(self) -> Iterator[Tensor]:
        """The model's outputs for each batch."""
        for index in range(len(self._data)):
            yield self._forward(index, {})

    def _forward(self, index: int, wrappers: Mapping[str, Wrapper]) -> Tensor:
        given = {name: outputs[index] for name, outputs in self.kept.items()}
        batch = to_device(self._data[index], self._device)
        with (
            torch.no_grad(),
            evaluating(self.model),
            replaced(self.model, {**_stubs(given), **wrappers}),
        ):
            return forward(self.model, batch, self._forward_fn)


def _stubs(outputs: Mapping[str, Any]) -> dict[str, Wrapper]:
    """Module -> what makes its forward return that output."""

    def stub(output: Any) -> Wrapper:
        def call(*args: Any, **options: Any) -> Any:
            # A function in place must not change what is kept.
            return with_tensors(output, torch.clone)

        return lambda _: call

    return {name: stub(output) for name, output in outputs.items()}


def _notes(names: Iterable[str], read: set[str], seen: dict[str, Any]) -> dict[str, Wrapper]:
    """Module -> what leaves a copy of its output in ``seen``, without tensors unless it is read."""

    def note(name: str) -> Wrapper:
        def wrap(original: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                output = original(*args, **options)
                copy = torch.clone if name in read else lambda _: _NOBODYS
                seen[name] = with_tensors(output, copy)
                return output

            return call

        return wrap

    return {name: note(name) for name in names}

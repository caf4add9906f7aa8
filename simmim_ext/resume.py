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
from .data import Batch, to_device
from .forward import ForwardFn, forward
from .modes import device_of, evaluating
from .recording import InputRecorder, Recorder
from .remembered import bytes_of

Calls = Mapping[str, list[tuple[Tensor, Tensor]]]

# For each batch module -> its output.
Outputs = Sequence[Mapping[str, Any]]

# Bytes of outputs that are kept of one model; beyond, batches are computed anew from where what is
# kept of them ends.
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
        kept: for each batch modules that are not run again, with their outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Batch],
        course: Course,
        forward_fn: ForwardFn | None,
        kept: Outputs | None = None,
    ) -> None:
        self.model, self.kept = model, list(kept or [{}] * len(data))
        self._data, self._course, self._forward_fn = data, course, forward_fn
        self._device, self._size = device_of(model), bytes_of(self.kept)

    def run(self, names: Iterable[str], *, to_the_end: bool) -> Iterator[tuple[Calls, Tensor]]:
        """For each batch the calls of the layers, and the model's outputs.

        Unless it goes to the end, a forward pass stops after the layers, without outputs.
        """
        recorder = Recorder(self.model, names)
        for outputs in self._runs(recorder, to_the_end=to_the_end):
            yield recorder.calls, outputs

    def inputs(self, names: Iterable[str]) -> Iterator[Mapping[str, list[Tensor]]]:
        """For each batch what the layers read. A forward pass stops where the last one begins."""
        recorder = InputRecorder(self.model, names)
        for _ in self._runs(recorder, to_the_end=False):
            yield recorder.calls

    def _runs(self, recorder: InputRecorder, *, to_the_end: bool) -> Iterator[Tensor]:
        """The model's outputs for each batch, once it was recorded."""
        names = list(recorder.calls)
        ended = self._course.ended(self._course.begin(names))
        done = largest(ended)
        read = self._course.still_read(done)
        most = None if to_the_end else self._course.calls(names)
        outputs = torch.empty(0, device="cpu")
        for index in range(len(self._data)):
            if not ended.issuperset(self.kept[index]):  # It went further before.
                self._keep(index, {})
            new = done - set(self.kept[index])
            seen: dict[str, Any] = {}
            with recorder.recording(most):
                outputs = self._forward(index, _notes(new, read, seen))
            yield outputs
            if set(seen) == new:
                every = {**self.kept[index], **seen}
                self._keep(
                    index,
                    {
                        n: out if n in read else _unread(out)
                        for n, out in every.items()
                        if n in done
                    },
                )

    def reach(self, names: Iterable[str]) -> Outputs:
        """What is kept after a run up to the layers."""
        for _ in self.inputs(names):
            pass
        return self.kept

    def _keep(self, index: int, outputs: Mapping[str, Any]) -> None:
        """Keeps these of a batch in place of others, if there is room."""
        size = self._size + bytes_of(outputs) - bytes_of(self.kept[index])
        if size <= MOST_KEPT:
            self.kept[index], self._size = outputs, size

    def outputs(self) -> Iterator[Tensor]:
        """The model's outputs for each batch."""
        for index in range(len(self._data)):
            yield self._forward(index, {})

    def _forward(self, index: int, wrappers: Mapping[str, Wrapper]) -> Tensor:
        batch = to_device(self._data[index], self._device)
        with (
            torch.no_grad(),
            evaluating(self.model),
            replaced(self.model, {**_stubs(self.kept[index]), **wrappers}),
        ):
            return forward(self.model, batch, self._forward_fn)


def _unread(output: Any) -> Any:
    return with_tensors(output, lambda _: _NOBODYS)


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
                seen[name] = with_tensors(output, torch.clone) if name in read else _unread(output)
                return output

            return call

        return wrap

    return {name: note(name) for name in names}

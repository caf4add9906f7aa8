"""What students of one network are refitted to: each thing is found once for all of them."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arrangement import sample_axes, samples_first, samples_of_rows
from .course import Course
from .data import Batch, batches, samples_of, to_device, token_mask
from .forward import ForwardFn
from .layers import output_rows
from .modes import device_of
from .norms import norms_behind
from .order import layers_together
from .recording import draw_positions
from .remembered import Remembered
from .resume import MOST_KEPT, Outputs, Resumed

# How many layers are remembered by what they said, and the bytes of that at most.
_REMEMBERED = 8
MOST_SAID = MOST_KEPT // _REMEMBERED

# Samples that do not fit but choose the ridge.
_HELD_OUT_EVERY = 4


class Said(NamedTuple):
    """What one call of a layer said, at the places that are looked at.

    Attributes:
        at: the places, as ``input_columns`` takes them.
        rows: [rows, outputs] the outputs there.
        held_out: [rows] whether they are of a sample that is held out, as every fourth is.
    """

    at: Tensor | None
    rows: Tensor
    held_out: Tensor


class Original:
    """A network, calibration data, and what is known of both.

    Args:
        model: the network; it must not change any more.
        data: calibration batches.
        samples: most of them to use.
        seed: of the positions of a convolution's output that are looked at.
        forward_fn: as in ``score``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        *,
        samples: int,
        seed: int = 0,
        forward_fn: ForwardFn | None = None,
    ) -> None:
        self.model, self.forward_fn, self._seed = model, forward_fn, seed
        self._device = device_of(model)
        self.data = list(batches(data, limit=samples, name="calibration"))
        self.example = next(iter(batches(self.data, device=self._device, limit=2)))
        self.course = Course(model, self.example, forward_fn)
        self._said: dict[tuple[str, ...], Remembered[dict[str, list[Said]]]] = {}
        # One run to hear layers, and one to where students begin, which is layers behind.
        self._ahead, self._behind = self.resumed(model), self.resumed(model)

    @cached_property
    def axes(self) -> dict[str, int]:
        """``sample_axes``."""
        return sample_axes(self.model, self.example, self.forward_fn)

    @cached_property
    def together(self) -> list[list[str]]:
        """``layers_together``."""
        return layers_together(self.model, self.example, self.forward_fn)

    @cached_property
    def order(self) -> list[str]:
        """``layers_in_order``."""
        return [name for names in self.together for name in names]

    @cached_property
    def norms(self) -> dict[str, str]:
        """``norms_behind`` these layers."""
        return norms_behind(self.model, self.order, self.example, self.forward_fn)

    @cached_property
    def outputs(self) -> Remembered[Tensor]:
        """The network's outputs for each batch."""
        return Remembered(self.resumed(self.model).outputs, MOST_KEPT)

    def resumed(self, student: nn.Module, changed: Iterable[str] | None = None) -> Resumed:
        """Runs of a student over the data.

        Args:
            student: the network with fewer units.
            changed: its modules and parameters that are not the network's, which go on where the
                network itself was before the first of them; best in the order in which they run.
        """
        kept: Outputs | None = None
        if changed is not None:
            time = self.course.begin(changed)
            before = [name for name in self.order if self.course.begin([name]) <= time]
            if before:
                kept = self._behind.reach(before[-1:])
        return Resumed(student, self.data, self.course, self.forward_fn, kept)

    def said(self, names: Iterable[str]) -> Remembered[dict[str, list[Said]]]:
        """For each batch what each call of the layers said."""
        key = tuple(names)
        if key not in self._said:
            if len(self._said) == _REMEMBERED:
                del self._said[next(iter(self._said))]
            self._said[key] = Remembered(lambda: self._listen(key), MOST_SAID)
        return self._said[key]

    def predictions(self, name: str) -> Iterator[Tensor]:
        """The network's outputs for each batch, by a run that goes on from that layer."""
        for _, outputs in self._ahead.run([name], to_the_end=True):
            yield outputs

    def _listen(self, names: tuple[str, ...]) -> Iterator[dict[str, list[Said]]]:
        generators = {name: torch.Generator(self._device).manual_seed(self._seed) for name in names}
        first = 0
        runs = self._ahead.run(names, to_the_end=False)
        for batch, (calls, _) in zip(self.data, runs, strict=True):
            mask, samples = token_mask(to_device(batch, self._device)), samples_of(batch)
            said: dict[str, list[Said]] = {name: [] for name in names}
            for name in names:
                layer = self.model.get_submodule(name)
                for _, z in calls[name]:
                    z = samples_first(z, self.axes.get(name, 0))
                    at = draw_positions(layer, z, generators[name], mask)
                    turn = (first + 1 + samples_of_rows(layer, z, at, samples)) % _HELD_OUT_EVERY
                    said[name].append(Said(at, output_rows(layer, z, at), turn == 0))
            yield said
            first += samples

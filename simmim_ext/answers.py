"""What a batch's outputs are about, samples or tokens."""

import torch
from torch import Tensor

from .data import Batch, samples_of, token_mask
from .errors import SimMIMError
from .recording import POSITIONS

# Bytes of second moments and activations that one pass over the data may gather.
PASS_BYTES = 1 << 30


class Answers:
    """What a batch's outputs are about, samples or tokens, and which of them are looked at.

    Args:
        outputs: [rows, outputs] as ``forward`` gives them.
        batch: the batch they are of.
        samples: the most samples that there will be.
        generator: draws tokens.

    Raises:
        SimMIMError: the outputs have not as many rows for each sample.
    """

    def __init__(
        self, outputs: Tensor, batch: Batch, samples: int, generator: torch.Generator
    ) -> None:
        self._mask = token_mask(batch)
        self._samples = samples_of(batch)
        self._drawn: Tensor | None = None  # among the rows of outputs
        self._tokens = torch.empty(0, device="cpu")  # the same as flat tokens of the batch
        if len(outputs) == self._samples:
            return
        masked = self._mask is not None and int(self._mask.sum()) == len(outputs)
        if not masked and len(outputs) % self._samples:
            raise SimMIMError(
                f"collect: the model's outputs have {len(outputs)} rows for {self._samples} "
                "samples, not as many for each; pass forward_fn=lambda model, batch: ... that "
                "returns [samples, outputs]"
            )
        room = PASS_BYTES // (4 * outputs.shape[1] * samples)
        count = max(1, min(POSITIONS, room)) * self._samples
        drawn = torch.randperm(len(outputs), generator=generator, device=outputs.device)[:count]
        self._drawn = drawn.sort().values
        self._tokens = self._drawn
        if masked and self._mask is not None:
            self._tokens = self._mask.flatten().nonzero().flatten()[self._drawn]
            self._each = self._mask.shape[1]
        else:
            self._each = len(outputs) // self._samples

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """The rows of outputs that are looked at."""
        return outputs if self._drawn is None else outputs[self._drawn]

    def of_inputs(self, x: Tensor, group: str) -> Tensor:
        """What the layer that reads a group is given, [..., inputs], at the same places.

        Means where there are more; over the tokens that the mask keeps where the outputs are about
        samples. Samples are the first axis, or folded into it with whatever else there is of each.

        Raises:
            SimMIMError: the rows are not as many for each sample.
        """
        rows = x[..., 0].numel()
        if rows % self._samples:
            raise SimMIMError(
                f"collect: the units of {group!r} are read in {rows} rows of {self._samples} "
                f"samples, not as many of each; put {group!r} in ignored_layers"
            )
        x = x.reshape(self._samples, -1, x.shape[-1])
        if self._drawn is None:
            return self._mean(x)
        if x.shape[1] == self._each:
            return x.flatten(0, 1)[self._tokens]
        return self._mean(x)[self._tokens // self._each]

    def _mean(self, x: Tensor) -> Tensor:
        if self._mask is None or x.shape[:2] != self._mask.shape:
            return x.mean(1)
        weight = self._mask.to(x.dtype)[..., None]
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)

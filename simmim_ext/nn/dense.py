"""A dense weight, which autocast wants in another dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch
from torch.compiler import is_compiling

from .product import AUTOCAST


class Dense:
    """A dense weight that is fixed, with its copy in autocast's dtype once that was asked for.

    Autocast keeps its casts of parameters alone, and until its context ends.

    Attributes:
        weight: [out_features, in_features].
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._cast: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the weight and its copy."""
        return self.weight.nbytes + (0 if self._cast is None else self._cast.nbytes)

    def under_autocast(self, x: Tensor) -> Tensor:
        """The weight as autocast, if x's device is under it, wants it for a product with x."""
        device, dtype = x.device.type, self.weight.dtype
        if (
            is_compiling()  # which casts in its own code
            or not torch.is_autocast_enabled(device)
            or not torch.is_autocast_cache_enabled()
            or (lower := torch.get_autocast_dtype(device)) == dtype
            or dtype not in AUTOCAST
        ):
            return self.weight
        cast = self._cast
        if cast is None or cast.dtype != lower:
            # What is made in inference mode cannot be saved for a gradient.
            with torch.inference_mode(False):
                cast = self.weight.to(lower)
            if _is_plain(cast):
                self._cast = cast
        return cast


def _is_plain(t: Tensor) -> bool:
    """Whether it outlives the mode, the transform or the graph's recording that it was made in."""
    return (
        type(t) is Tensor
        and not _functorch.is_functorch_wrapped_tensor(t)
        and not (t.is_cuda and torch.cuda.is_current_stream_capturing())
    )

"""The inputs of a traced model, made known to the tracer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .data import Batch, map_tensors

_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_NAME = "simmim_ext_source"


class Sources:
    """Gives floating inputs a node of their own, by which units that are tied to them are known.

    Args:
        channels: the axis, 1 or -1, of which inputs pass a layer, instead of a multiplication by
            one: torch-pruning needs to know their channels where they are concatenated with
            activations, but takes other models wrongly then.
    """

    def __init__(self, *, channels: int | None = None) -> None:
        self._channels = channels
        self._nodes: list[Any] = []
        self._layers: list[nn.Module] = []

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its floating tensors passed through the sources."""
        layers = iter(self._layers)
        return map_tensors(batch, lambda tensor: self._passed(tensor, layers))

    def __contains__(self, node: Any) -> bool:
        """Whether it is a node of the graph that stands for an input."""
        return node.grad_fn in self._nodes or any(node.module is layer for layer in self._layers)

    @contextmanager
    def within(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        """The model has the sources' layers during the block."""
        if self._channels is not None:
            map_tensors(batch, self._add_layer)
        for i, layer in enumerate(self._layers):
            model.add_module(f"{_NAME}_{i}", layer)
        try:
            yield
        finally:
            for i in range(len(self._layers)):
                delattr(model, f"{_NAME}_{i}")

    def _add_layer(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.dim() in _NORMS:
            norm: nn.Module = nn.LayerNorm(tensor.shape[-1])
            if self._channels == 1:
                norm = _NORMS[tensor.dim()](tensor.shape[1])
            self._layers.append(norm.to(tensor.device, tensor.dtype).eval())
        return tensor

    def _passed(self, tensor: Tensor, layers: Iterator[nn.Module]) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.detach().clone().requires_grad_(True) * 1.0
        self._nodes.append(tensor.grad_fn)
        if self._layers and tensor.dim() in _NORMS:
            result: Tensor = next(layers)(tensor)
            return result
        return tensor

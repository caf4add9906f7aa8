"""What is computed once where it fits into memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


class Remembered(Generic[T]):
    """What can be iterated over again and again.

    Args:
        make: begins it; called once where all that comes of it is kept.
        most: bytes of tensors to keep at most; if they are more, none is.
    """

    def __init__(self, make: Callable[[], Iterable[T]], most: int) -> None:
        self._make, self._most = make, most
        self._items: list[T] | None = None

    def __iter__(self) -> Iterator[T]:
        if self._items is not None:
            yield from self._items
            return
        items: list[T] = []
        size = 0
        for item in self._make():
            yield item
            size += bytes_of(item)
            if size <= self._most:
                items.append(item)
            else:
                items.clear()
        if size <= self._most:
            self._items = items


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def bytes_of(value: Any) -> int:
    """What these tensors take."""
    return sum(tensor.nbytes for tensor in tensors(value))

"""Who reads a tensor during a forward pass."""

from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class Readers(TorchFunctionMode):
    """Notes whose tensors come into any function of torch.

    Args:
        owners: id of a tensor -> whose it is; more may be added later.

    Attributes:
        running: what runs at the moment, as the caller tells.
        found: whose tensors were read -> by what ran at these times.
    """

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.running: list[str] = []
        self.found: dict[str, set[frozenset[str]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def note(self, arguments: Any) -> None:
        """That a function reads the tensors among its arguments."""
        for leaf in pytree.tree_leaves(arguments):
            if id(leaf) in self.owners:
                times = self.found.setdefault(self.owners[id(leaf)], set())
                times.add(frozenset(self.running))

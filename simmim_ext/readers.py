"""Who reads a tensor during a forward pass."""

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class Readers(TorchFunctionMode):
    """Notes whose tensors come into any function of torch, or into a module that is watched.

    Args:
        owners: id of a tensor -> whose it is; more may be added later.
    """

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def watch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A module's forward function that notes what comes into it."""

        def call(*args: Any, **options: Any) -> Any:
            self.note((args, options))
            return original(*args, **options)

        return call

    def note(self, arguments: Any) -> None:
        """That a function reads the tensors among its arguments."""
        for leaf in pytree.tree_leaves(arguments):
            if id(leaf) in self.owners:
                self.found.add(self.owners[id(leaf)])

"""Float32 copies of weights of half precision, for an optimizer to move in their place."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_HALVES = (torch.float16, torch.bfloat16)


class Masters:
    """Float32 copies of the parameters of half precision (Micikevicius et al., 2018).

    A step of less than a 512th of a bfloat16 weight is rounded away, and so are most of Adam's.

    Args:
        parameters: those that are trained, of any precision.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._copies = {
            parameter: nn.Parameter(parameter.detach().float())
            for parameter in parameters
            if parameter.dtype in _HALVES
        }

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer moves in the parameter's place; itself where that is precise."""
        return self._copies.get(parameter, parameter)

    def take_gradients(self) -> None:
        """Moves the parameters' gradients to the copies."""
        for parameter, copy in self._copies.items():
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    def give_values(self) -> None:
        """Gives the parameters the copies' values, rounded."""
        with torch.no_grad():
            for parameter, copy in self._copies.items():
                parameter.copy_(copy)

    def state(self) -> dict[str, Tensor]:
        """The copies by number, on the CPU."""
        copies = enumerate(self._copies.values())
        return {str(i): copy.detach().cpu().clone() for i, copy in copies}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Gives the copies the values that ``state`` gave."""
        with torch.no_grad():
            for i, copy in enumerate(self._copies.values()):
                copy.copy_(state[str(i)])

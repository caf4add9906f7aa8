"""The similarity-preserving loss of Tung & Mori (2019), at the input of the last linear layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional

from .errors import SimMIMError
from .nn import MaskedLinear


def gram_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Of what ``last_input`` kept of the models."""
    for role, kept in (("teacher", teacher), ("student", student)):
        if not kept:
            raise SimMIMError(
                "distill: gram_weight needs an nn.Linear or MaskedLinear, at whose input samples "
                f"are compared, and the {role} runs none; set gram_weight=0"
            )
    return (gram(student[0]) - gram(teacher[0])).square().mean()


def gram(features: Tensor) -> Tensor:
    """Similarities of the batch's samples [samples, samples], each row of unit length."""
    rows = features.flatten(1).float()
    return functional.normalize(rows @ rows.T, dim=1)


@contextmanager
def last_input(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Keeps the input of the linear layer that runs last in the block, in a list of one, if wanted.

    It is the last to run and not the last by order of definition, which need not run as a module.
    """
    kept: list[Tensor] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept[:] = args[:1]

    handles = [
        layer.register_forward_pre_hook(keep)
        for layer in model.modules()
        if wanted and isinstance(layer, nn.Linear | MaskedLinear)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()

"""The mode that a student is in while it learns: as in use, but for what has to be otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import CompressConfig
from .data import Batch
from .forward import ForwardFn, forward
from .modes import device_of, in_mode
from .remembered import tensors


@contextmanager
def learning(
    student: nn.Module, batch: Batch, forward_fn: ForwardFn | None, config: CompressConfig
) -> Iterator[bool]:
    """Puts layers into training mode that have to be, of a student in eval mode, for the block.

    Those are BatchNorms, unless frozen or left in eval mode by the student's own ``train``,
    recurrent layers on CUDA, which has no backward for them otherwise, layers of transformers
    that are to save memory by gradient checkpointing, which they do in training mode alone, and
    those that keep, in eval mode, what they made of their parameters. Others, also within those,
    stay as in use: dropout would keep the student from saying what the teacher says without. All
    are in training mode where the outputs have gradients in it alone.

    Args:
        student: the model, in eval mode.
        batch: what it is tried on.
        forward_fn: as in ``distill``.
        config: tells whether BatchNorms are frozen.

    Yields:
        Whether there is a BatchNorm in training mode.
    """

    def has_to_be(layer: nn.Module) -> bool:
        if isinstance(layer, _BatchNorm):
            return not config.freeze_batch_norm
        if getattr(layer, "gradient_checkpointing", False) is True:
            return True
        return isinstance(layer, nn.RNNBase) and device_of(layer).type == "cuda"

    # Its own ``train`` also makes layers forget what they keep.
    with in_mode(student, training=True):
        trained = [layer for layer in student.modules() if layer.training]
        for layer in student.modules():
            layer.training = False
        with torch.enable_grad():
            in_use = forward(student, batch, forward_fn).requires_grad
            keeping = _keeping(student, batch, forward_fn)
        for layer in keeping:
            layer.train()
        for layer in student.modules():
            layer.training = False
        for layer in trained:
            other = not isinstance(layer, _BatchNorm)
            layer.training = has_to_be(layer) or layer in keeping or (other and not in_use)
        yield any(isinstance(layer, _BatchNorm) and layer.training for layer in trained)


def _keeping(student: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> list[nn.Module]:
    """Layers that keep what they made of parameters from call to call, of a student that just ran.

    LeViT's attention does so with its biases: a second step would go back through the graph of the
    first, and the parameters would have changed.
    """
    made = _made(student)
    if not made:
        return []
    forward(student, batch, forward_fn)
    again = _made(student)
    return [
        layer
        for layer, values in made.items()
        if any(value is other for value in values for other in again.get(layer, ()))
    ]


def _made(student: nn.Module) -> dict[nn.Module, list[Tensor]]:
    """Layer -> tensors among its attributes that gradients go back from."""
    held = ((layer, tensors(vars(layer))) for layer in student.modules())
    made = ((layer, [x for x in values if x.grad_fn is not None]) for layer, values in held)
    return {layer: values for layer, values in made if values}

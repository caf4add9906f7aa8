"""The mode that a student is in while it learns: as in use, but for what has to be otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import CompressConfig
from .data import Batch
from .forward import ForwardFn, forward
from .modes import device_of, in_mode


@contextmanager
def learning(
    student: nn.Module, batch: Batch, forward_fn: ForwardFn | None, config: CompressConfig
) -> Iterator[bool]:
    """Puts layers into training mode that have to be, of a student in eval mode, for the block.

    Those are BatchNorms, unless frozen or left in eval mode by the student's own ``train``,
    recurrent layers on CUDA, which has no backward for them otherwise, and layers of transformers
    that are to save memory by gradient checkpointing, which they do in training mode alone. Others,
    also within those, stay as in use: dropout would keep the student from saying what the teacher
    says without. All are in training mode where the outputs have gradients in it alone.

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

    with in_mode(student, training=True):
        trained = [layer for layer in student.modules() if layer.training]
        for layer in student.modules():
            layer.training = False
        with torch.enable_grad():
            in_use = forward(student, batch, forward_fn).requires_grad
        for layer in trained:
            other = not isinstance(layer, _BatchNorm)
            layer.training = has_to_be(layer) or (other and not in_use)
        yield any(isinstance(layer, _BatchNorm) and layer.training for layer in trained)

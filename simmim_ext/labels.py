"""A batch's labels, arranged as ``forward`` arranges the outputs: a row for each sample.

Of a model that answers for each token, samples are the tokens that the attention mask keeps.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .data import Batch, inputs_of, labels_of, samples_of, token_mask
from .errors import SimMIMError
from .forward import ForwardFn

# The class of a sample without a label, as in torch's cross_entropy.
NO_LABEL = -100


def class_labels(batch: Batch, rows: int) -> Tensor | None:
    """[rows] int64 class of each row of outputs, NO_LABEL where it has none.

    Labels may be of any dtype whose values are whole numbers; negative ones stand for none. Labels
    that equal their ``input_ids`` are a causal language model's, which shifts them itself: the
    label of a token is then the next token.

    Returns:
        None where the batch has no labels, or not one whole number for each row.
    """
    labels = labels_of(batch)
    if labels is None or labels.is_complex():
        return None
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels):
        return None
    whole = whole.where(whole >= 0, NO_LABEL)
    return _in_shape(_next_tokens(batch, whole), batch, (rows,))


def true_classes(
    batch: Batch, outputs: Tensor, forward_fn: ForwardFn | None = None
) -> Tensor | None:
    """The ``class_labels`` of outputs [rows, classes], all of them classes of theirs.

    Returns:
        None where the batch has no labels, or shares of classes. With ``forward_fn`` also where
        they do not fit the outputs, since any item of a batch may be an input of it.

    Raises:
        SimMIMError: the labels do not fit the outputs.
    """
    labels, found = labels_of(batch), class_labels(batch, len(outputs))
    if labels is None or (found is None and value_labels(batch, outputs) is not None):
        return None
    rows, classes = outputs.shape
    if found is not None and (found < classes).all():
        return found
    if forward_fn is not None:
        return None
    got = f"{labels.dtype} {list(labels.shape)}" if found is None else f"class {int(found.max())}"
    raise SimMIMError(
        "labels, the second item of a tuple or 'labels' of a dict, must be a class below "
        f"{classes} (or negative, for none) for each of {rows} outputs, or shares of classes "
        f"[{rows}, {classes}], got {got}; correct them, or leave them out of the batches"
    )


def value_labels(batch: Batch, outputs: Tensor) -> Tensor | None:
    """The labels in shape and dtype of the outputs [rows, outputs].

    Returns:
        None where the batch has no labels, or not one for each output.
    """
    labels = labels_of(batch)
    found = None if labels is None else _in_shape(labels, batch, tuple(outputs.shape))
    return None if found is None else found.to(outputs.dtype)


def _in_shape(labels: Tensor, batch: Batch, shape: tuple[int, ...]) -> Tensor | None:
    """The labels in the shape of rows of outputs, without those of padding, or None."""
    if labels.dim() == 0 or len(labels) not in (shape[0], samples_of(batch)):
        return None
    size, mask = math.prod(shape), token_mask(batch)
    if labels.numel() != size and mask is not None and mask.shape == labels.shape[:2]:
        labels = labels[mask.bool()]
    return labels.reshape(shape) if labels.numel() == size else None


def _next_tokens(batch: Batch, labels: Tensor) -> Tensor:
    """The labels, moved by one token where they equal the batch's ``input_ids``."""
    source = batch[0] if isinstance(batch, list | tuple) else batch
    tokens = inputs_of(source)[1].get("input_ids") if isinstance(source, Mapping) else None
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape != labels.shape:
        return labels
    if ((labels != tokens) & (labels >= 0)).any():
        return labels
    mask = token_mask(batch)
    if mask is not None and mask.shape == labels.shape:
        labels = labels.where(mask.bool(), NO_LABEL)  # Padding is no next token.
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], NO_LABEL)], dim=1)

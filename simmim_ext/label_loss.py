"""The label term of a distillation's loss."""

from torch import Tensor
from torch.nn import functional

from .data import Batch, labels_of
from .errors import SimMIMError
from .labels import NO_LABEL, class_labels, value_labels
from .outputs import kl_per_sample


def label_loss(student: Tensor, batch: Batch, noise: float | None, label_weight: float) -> Tensor:
    """How far a student's outputs [rows, outputs] are from the labels, in nats, a scalar.

    Args:
        student: the outputs.
        batch: what they are of, with its labels.
        noise: None for classes; for values and embeddings the Gaussian output noise's variance.
        label_weight: the term's weight, which errors name.

    Raises:
        SimMIMError: the batch has no labels, or none that fit the outputs.
    """
    if noise is not None:
        values = value_labels(batch, student)
        if values is None:
            wanted = f"labels of the outputs' shape {[*student.shape]}"
            raise _no_labels(batch, wanted, label_weight)
        return kl_per_sample(values, student, noise=noise).mean()
    labels = class_labels(batch, len(student))
    if labels is None:
        shares = value_labels(batch, student)
        if shares is None:
            wanted = f"one label for each of the {len(student)} samples of a batch, a whole number"
            raise _no_labels(batch, wanted, label_weight)
        return functional.cross_entropy(student, shares)
    if labels.max() >= student.shape[1]:
        raise SimMIMError(
            f"distill: labels must be below the {student.shape[1]} classes of the outputs "
            f"(or negative, none), got {labels.max().item()}; correct the data, or set "
            "label_weight=0"
        )
    # The mean over no label at all would be NaN.
    total = functional.cross_entropy(student, labels, reduction="sum", ignore_index=NO_LABEL)
    return total / (labels >= 0).sum().clamp(min=1)


def _no_labels(batch: Batch, wanted: str, label_weight: float) -> SimMIMError:
    labels = labels_of(batch)
    got = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}"
    return SimMIMError(
        f"distill: label_weight={label_weight} needs {wanted}, got {got}; set label_weight=0 or "
        "give (inputs, labels)"
    )

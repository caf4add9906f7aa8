"""The checks of what estimators are given as values: floating-point tensors."""

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_values(caller: str, argument: str, x: object) -> Tensor:
    """The values x [samples, features], without their gradient.

    Raises:
        TypeError: x is no dense floating-point tensor.
        ValueError: x is of another shape.
    """
    if not isinstance(x, Tensor):
        raise not_a_tensor(caller, argument, x, "a tensor or a Discretized")
    if x.layout != torch.strided or x.is_nested:  # no call of it where all is well
        check_dense(caller, argument, x)
    if x.dtype not in _DTYPES:
        raise TypeError(
            f"{caller}: {argument} must be float16, bfloat16, float32 or float64, got {x.dtype}; "
            "wrap integer codes as Discretized(codes, bins), codes [features, samples] uint8"
        )
    if x.dim() != 2:
        of_one = f"; one feature is {argument}[:, None]"
        labels = "" if argument == "x" else f", and class labels are {argument}.long()"
        raise ValueError(
            f"{caller}: {argument} must have shape [samples, features], got {list(x.shape)}"
            + (of_one + labels if x.dim() == 1 else "")
        )
    return x.detach() if x.requires_grad else x


def check_dense(caller: str, argument: str, x: Tensor) -> None:
    """Raises TypeError unless x is laid out as plain tensors are."""
    if x.layout != torch.strided or x.is_nested:
        found = "a nested tensor" if x.layout == torch.strided else x.layout
        raise TypeError(f"{caller}: {argument} must be a dense tensor, got {found}")


def not_a_tensor(caller: str, argument: str, x: object, wanted: str = "a tensor") -> TypeError:
    """The error for an argument that is no tensor, and may be an array."""
    array = hasattr(x, "__array__") or isinstance(x, list | tuple)
    return TypeError(
        f"{caller}: {argument} must be {wanted}, got {type(x).__name__}"
        + (f"; give torch.from_numpy(numpy.asarray({argument}))" if array else "")
    )

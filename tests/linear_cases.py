"""The cases of the linear layers' operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from case import Case
from torch import Tensor

from simmim_ext.ops.compressed_linear import (
    compressed_linear,
    compressed_linear_input_grad,
    decompress_weight,
)
from simmim_ext.ops.masked_linear import (
    masked_linear,
    masked_linear_input_grad,
    masked_linear_weight_grad,
)

# batch axes, in_features, out_features: none a multiple of a vector, and the empty and the smallest
LINEAR_SHAPES = (((5,), 37, 19), ((2, 3), 7, 5), ((1,), 1, 1), ((0,), 4, 3), ((65,), 130, 9))


def masked_reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x, weight.where(mask, 0), bias)


def _masked_operands(*names: str) -> Callable[[str], Iterator[tuple[Any, ...]]]:
    """Arguments by name, x, grad, weight, mask and bias, over shapes, densities and dtypes."""

    def arguments(device: str) -> Iterator[tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(0)
        for dtype, density in ((torch.float64, 0.5), (torch.float32, 0.2), (torch.float32, 0.9)):
            for batch, features, out in LINEAR_SHAPES[: 4 if dtype == torch.float64 else None]:
                shapes = {"x": (*batch, features), "grad": (*batch, out), "bias": (out,)}
                mask = torch.rand(out, features, generator=generator) < density
                yield tuple(
                    mask.to(device) if name == "mask"
                    else torch.randn(
                        shapes.get(name, (out, features)), generator=generator, dtype=dtype
                    ).to(device).requires_grad_()
                    for name in names
                )  # fmt: skip

    return arguments


def decompress_reference(bitmap: Tensor, values: Tensor, out: int, features: int) -> Tensor:
    bits = np.unpackbits(bitmap.numpy(), count=out * features, bitorder="little")
    mask = torch.from_numpy(bits).bool().view(out, features)
    return torch.zeros(out, features, dtype=values.dtype).masked_scatter(mask, values)


def compressed_reference(
    x: Tensor, bitmap: Tensor, values: Tensor, weight: Tensor | None, bias: Tensor | None,
    out: int, features: int,
) -> Tensor:  # fmt: skip
    return torch.nn.functional.linear(x, decompress_reference(bitmap, values, out, features), bias)


def _compressed(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What compress_weight returns, by numpy: its readers are tested without it."""
    bits = np.packbits(mask.numpy(), bitorder="little")
    return torch.from_numpy(bits), weight.detach()[mask]


def _decompress_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for weight, mask in _masked_operands("weight", "mask")("cpu"):
        bitmap, values = _compressed(weight, mask)
        for dtype in (values.dtype, torch.float16):
            yield bitmap.to(device), values.to(device, dtype), *weight.shape


def _compressed_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for x, weight, mask, bias in _masked_operands("x", "weight", "mask", "bias")(device):
        compressed = [t.to(device) for t in _compressed(weight.cpu(), mask.cpu())]
        yield x, *compressed, None, bias, *weight.shape
        yield x, *compressed, weight.detach().where(mask, 0), None, *weight.shape


def _compressed_grad_arguments(device: str) -> Iterator[tuple[Any, ...]]:
    for grad, weight, mask in _masked_operands("grad", "weight", "mask")(device):
        compressed = [t.to(device) for t in _compressed(weight.cpu(), mask.cpu())]
        for dense in (None, weight.detach().where(mask, 0)):
            yield grad, *compressed, dense, *weight.shape


LINEAR_CASES: tuple[Case, ...] = (
    Case(
        name="masked_linear",
        op=masked_linear,
        reference=masked_reference,
        arguments=_masked_operands("x", "weight", "mask", "bias"),
        tolerance=1e-4,
        thread_tolerance=1e-5,
        differentiable=True,
        bad=(
            (lambda: (torch.rand(2, 4), torch.rand(3, 4), torch.ones(4, 3).bool()), ValueError,
             "masked_linear: mask must have weight's shape [3, 4], got [4, 3]"),
            (lambda: (torch.rand(2, 4), torch.rand(3, 4), torch.ones(3, 4)), TypeError,
             "masked_linear: mask must be bool, got float32"),
            (lambda: (torch.rand(2, 4), torch.rand(4), torch.ones(4).bool()), ValueError,
             "masked_linear: mask must have shape [out_features, in_features], got [4]"),
            (lambda: (torch.rand(2, 5), torch.rand(3, 4), torch.ones(3, 4).bool()), ValueError,
             "masked_linear: x must have shape [..., in_features] with in_features = 4, "
             "got [2, 5]"),
            (lambda: (torch.rand(2, 4).double(), torch.rand(3, 4), torch.ones(3, 4).bool()),
             TypeError, "masked_linear: x must have the dtype of weight, float32, got float64"),
            (lambda: (torch.rand(2, 4).int(), torch.rand(3, 4), torch.ones(3, 4).bool()),
             TypeError,
             "masked_linear: x must be float32, float64, float16 or bfloat16, got int32"),
            (lambda: (torch.rand(2, 4), torch.rand(3, 4) + 0j, torch.ones(3, 4).bool()), TypeError,
             "masked_linear: weight must be float32, float64, float16 or bfloat16, got complex64"),
            (lambda: (torch.rand(2, 4), torch.rand(3, 4), torch.ones(3, 4).bool(), torch.rand(4)),
             ValueError, "masked_linear: bias must have shape [out_features] = [3], got [4]"),
        ),
    ),
    Case(
        name="masked_linear_input_grad",
        op=masked_linear_input_grad,
        reference=lambda grad, weight, mask: grad @ weight.where(mask, 0),
        arguments=_masked_operands("grad", "weight", "mask"),
        tolerance=1e-4,
        thread_tolerance=1e-5,
        differentiable=True,
        bad=(
            (lambda: (torch.rand(2, 4), torch.rand(3, 4), torch.ones(3, 4).bool()), ValueError,
             "masked_linear_input_grad: grad must have shape [..., out_features] with "
             "out_features = 3, got [2, 4]"),
        ),
    ),
    Case(
        name="masked_linear_weight_grad",
        op=masked_linear_weight_grad,
        reference=lambda grad, x, mask: (
            torch.einsum("bo,bi->oi", grad.flatten(0, -2), x.flatten(0, -2)).where(mask, 0)
        ),
        arguments=_masked_operands("grad", "x", "mask"),
        tolerance=1e-4,
        thread_tolerance=1e-5,
        differentiable=True,
        bad=(
            (lambda: (torch.rand(2, 3), torch.rand(5, 4), torch.ones(3, 4).bool()), ValueError,
             "masked_linear_weight_grad: grad and x must have the same batch axes, got [2, 3] and "
             "[5, 4]"),
        ),
    ),
    Case(
        name="decompress_weight",
        op=decompress_weight,
        reference=decompress_reference,
        arguments=_decompress_arguments,
        bad=(
            (lambda: (torch.zeros(3).byte(), torch.zeros(0), 3, 4), ValueError,
             "decompress_weight: bitmap must have shape [ceil(out_features * in_features / 8)] = "
             "[2], got [3]"),
            (lambda: (torch.tensor([255, 15]).byte(), torch.zeros(11), 3, 4), ValueError,
             "decompress_weight: values must have one entry for each of 12 bits set in bitmap, "
             "got [11]"),
            (lambda: (torch.zeros(2), torch.zeros(0), 3, 4), TypeError,
             "decompress_weight: bitmap must be uint8, got float32"),
            (lambda: (torch.zeros(2).byte(), torch.zeros(0).int(), 3, 4), TypeError,
             "decompress_weight: values must be float32, float64, float16 or bfloat16, got int32"),
            (lambda: (torch.zeros(2).byte(), torch.zeros(0), -3, 4), ValueError,
             "decompress_weight: out_features and in_features must not be negative, got -3 and 4"),
        ),
    ),
    Case(
        name="compressed_linear",
        op=compressed_linear,
        reference=compressed_reference,
        arguments=_compressed_arguments,
        tolerance=1e-4,
        thread_tolerance=1e-5,
        differentiable=True,
        bad=(
            (lambda: (torch.rand(2, 5), torch.zeros(2).byte(), torch.zeros(0), None, None, 3, 4),
             ValueError, "compressed_linear: x must have shape [..., in_features] with "
             "in_features = 4, got [2, 5]"),
            (lambda: (torch.rand(2, 4).double(), torch.zeros(2).byte(), torch.zeros(0), None, None,
                      3, 4), TypeError,
             "compressed_linear: x must have the dtype of values, float32, got float64"),
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(), torch.zeros(0), torch.zeros(4, 3),
                      None, 3, 4), ValueError,
             "compressed_linear: weight must have shape [out_features, in_features] = [3, 4], "
             "got [4, 3]"),
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(), torch.zeros(0), None, torch.zeros(4),
                      3, 4), ValueError,
             "compressed_linear: bias must have shape [out_features] = [3], got [4]"),
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(),
                      torch.zeros(0).requires_grad_(), None, None, 3, 4), NotImplementedError,
             "compressed_linear: values and weight must not require a gradient; train a "
             "MaskedLinear"),
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(), torch.zeros(0),
                      torch.zeros(3, 4).double(), None, 3, 4), TypeError,
             "compressed_linear: x must have the dtype of weight, float64, got float32"),
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(), torch.zeros(0),
                      torch.zeros(3, 4).int(), None, 3, 4), TypeError,
             "compressed_linear: weight must be float32, float64, float16 or bfloat16, got int32"),
        ),
    ),
    Case(
        name="compressed_linear_input_grad",
        op=compressed_linear_input_grad,
        reference=lambda grad, bitmap, values, weight, out, features: (
            grad @ decompress_reference(bitmap, values, out, features)
        ),
        arguments=_compressed_grad_arguments,
        tolerance=1e-4,
        thread_tolerance=1e-5,
        differentiable=True,
        bad=(
            (lambda: (torch.rand(2, 4), torch.zeros(2).byte(), torch.zeros(0), None, 3, 4),
             ValueError, "compressed_linear_input_grad: grad must have shape [..., out_features] "
             "with out_features = 3, got [2, 4]"),
            (lambda: (torch.rand(2, 3), torch.zeros(2).byte(), torch.zeros(0).half(), None, 3, 4),
             TypeError, "compressed_linear_input_grad: grad must have the dtype of values, float16,"
             " got float32"),
            (lambda: (torch.rand(2, 3), torch.zeros(2).byte(), torch.zeros(0), torch.zeros(4, 3),
                      3, 4), ValueError, "compressed_linear_input_grad: weight must have shape "
             "[out_features, in_features] = [3, 4], got [4, 3]"),
            (lambda: (torch.rand(2, 3), torch.zeros(2).byte(), torch.zeros(0).requires_grad_(),
                      None, 3, 4), NotImplementedError, "compressed_linear_input_grad: values and "
             "weight must not require a gradient; train a MaskedLinear"),
        ),
    ),
)  # fmt: skip

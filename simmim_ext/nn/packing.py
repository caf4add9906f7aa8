"""Chooses and makes the kernels of a sparse layer from its compressed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._library import cpu_capability, has_cuda_kernels
from ..ops.compressed_linear import decompress_weight
from .choice import Choice, choose
from .choice_cuda import choose_on_cuda
from .dense import Dense
from .kernel import Kernel, make_kernel
from .pattern import recognise
from .structured_cuda import offered

COMPRESSED = Kernel(math.inf, "compressed")


class Made(NamedTuple):
    """The kernels of a compressed form."""

    bitmap: Tensor  # what they were made of, at these versions
    values: Tensor
    bitmap_version: int
    values_version: int
    choice: Choice
    kernels: tuple[Kernel, ...]


def make_kernels(
    bitmap: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    memory: str,
    choice: Choice | None = None,
) -> Made:
    """Chooses the kernels, unless told, and makes what they need.

    Args:
        bitmap: of the compressed form, see `compress_weight`; no inference tensor, as values.
        values: of the compressed form.
        shape: out_features, in_features.
        memory: "fast" or "small".
        choice: of the kernels; None: the fastest.

    Raises:
        TypeError: a dtype is no compressed form's.
        ValueError: bitmap and values do not fit, or not the shape.
    """
    if values.device != bitmap.device:
        raise ValueError(
            f"SparseLinear: values must be on bitmap's device {bitmap.device}, got {values.device}"
        )
    # Now: what another thread changes from here on, the kernels need not be made of.
    versions = bitmap._version, values._version
    device = bitmap.device.type
    if device != "cpu" and not (device == "cuda" and has_cuda_kernels()):
        return make_none(bitmap, values, shape, f"there are no kernels for {device}")
    weight = decompress_weight(bitmap, values, *shape)
    mask = decompress_mask(bitmap, values, shape)
    pattern = recognise(mask)
    if choice is None and memory == "small":
        kernels = ((None, "compressed"),)
        choice = Choice(pattern.name, pattern.density, kernels, "memory='small'")
    elif choice is None and device == "cuda":
        kernel = offered(weight, pattern)
        choice = choose_on_cuda(pattern, weight.numel(), values.dtype, kernel)
    choice = choice or choose(pattern, shape, cpu_capability(), values.dtype)
    dense = Dense(weight)
    made = {
        name: make_kernel(name, dense, mask, pattern)
        for name in {name for _, name in choice.kernels}
    }
    limited = tuple(
        made[name]._replace(limit=math.inf if limit is None else limit)
        for limit, name in choice.kernels
    )
    return Made(bitmap, values, *versions, choice, limited)


def make_none(bitmap: Tensor, values: Tensor, shape: tuple[int, int], reason: str) -> Made:
    """What serves a form of which no kernels can be made: compressed_linear alone."""
    density = values.numel() / max(math.prod(shape), 1)
    choice = Choice("unknown", density, ((None, "compressed"),), reason)
    return Made(bitmap, values, bitmap._version, values._version, choice, (COMPRESSED,))


def decompress_mask(bitmap: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """What the bitmap keeps, bool [out_features, in_features]."""
    return decompress_weight(bitmap, torch.ones_like(values), *shape).bool()


def decompress_exported(bitmap: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The same as decompress_weight in standard operators, for runtimes that lack ours."""
    lanes = torch.arange(8, dtype=torch.uint8, device=bitmap.device)
    bits = (bitmap.unsqueeze(1) >> lanes) & 1
    mask = bits.flatten()[: math.prod(shape)].bool().view(shape)
    return values.new_zeros(shape).masked_scatter(mask, values)

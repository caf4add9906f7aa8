"""A linear layer with few weights, packed for inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from ..ops._library import cpu_capability, has_cuda_kernels, operator
from ..ops.compressed_linear import compress_weight, decompress_weight
from .choice import Choice, choose
from .choice_cuda import choose_on_cuda
from .kernel import Kernel, compact_linear, held_bytes, make_kernel
from .masked import MaskedLinear, check_mask, check_sizes
from .pattern import recognise
from .structured_cuda import offered

# Not the functions of these names: in a small layer each Python call is felt.
_compressed_linear = operator("compressed_linear")
_sparse_linear = operator("sparse_linear")

MEMORY = ("fast", "small")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with few weights kept, for inference; made by `from_linear`.

    Kept weights behave as in ``nn.Linear``, NaN and infinity included; a masked weight contributes
    nothing, whatever x holds. Differentiable in x. Sparse kernels multiply and add in float32
    whatever ``torch.set_float32_matmul_precision`` permits; where a dense kernel serves, torch
    honours the setting as in ``nn.Linear``. A bfloat16 layer may round x to bfloat16 (its dense and
    its "tile" kernel do), and adds in float32 all the same.

    What is saved is the portable compressed form: a bit for each weight, and the kept weights'
    values, density + 1/32 of the dense size for float32. The packed kernels are made from it on the
    device at hand, whenever the layer is made, loaded, copied, unpickled, or moved to another
    device or dtype. ``torch.export`` exports an equivalent of standard operators on the compressed
    form.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether there is a bias.
        device: where the layer lives; it has kernels for the CPU and CUDA.
        dtype: of values and bias: float32 (default), float64, float16 or bfloat16.
        memory: "fast" keeps what its kernels need beside the compressed form; "small" keeps the
            compressed form only, and decompresses it block by block in each call.

    Attributes:
        bitmap: uint8 buffer [ceil(out_features * in_features / 8)].
        values: buffer [kept weights].
        bias: buffer [out_features], or None.
        weight: the dense weight, made from bitmap and values in each read.
    """

    bitmap: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory: str = "fast",
    ) -> None:
        super().__init__()
        check_sizes("SparseLinear", in_features=in_features, out_features=out_features)
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPES:
            raise TypeError(f"SparseLinear: dtype must be one of {DTYPES}, got {dtype}")
        if memory not in MEMORY:
            raise ValueError(f"SparseLinear: memory must be 'fast' or 'small', got {memory!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.memory = memory
        bytes_ = (in_features * out_features + 7) // 8
        self.register_buffer("bitmap", torch.zeros(bytes_, dtype=torch.uint8, device=device))
        self.register_buffer("values", torch.empty(0, dtype=dtype, device=device))
        self.register_buffer(
            "bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        )
        self._pack()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear | MaskedLinear,
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory: str = "fast",
    ) -> SparseLinear:
        """Packs a layer.

        Args:
            linear: the layer to pack; it stays as it is.
            mask: bool [out_features, in_features], True where a weight is kept. None: a
                MaskedLinear's own mask, a Linear's nonzero weights.
            dtype: of values and bias; None: the layer's own. With bfloat16 weights, float32 inputs
                give float32 outputs.
            memory: "fast" or "small"; see the class.

        Raises:
            ValueError: the mask has another shape, or `memory` is unknown.
            TypeError: the mask is not bool, `linear` is another kind of layer, or `dtype` is none
                of float32, float64, float16 and bfloat16.
        """
        caller = "SparseLinear.from_linear"
        if not isinstance(linear, (nn.Linear, MaskedLinear)):
            raise TypeError(
                f"{caller}: linear must be an nn.Linear or a MaskedLinear,"
                f" got {type(linear).__name__}"
            )
        weight = linear.weight.detach()
        if mask is None:
            mask = linear.mask if isinstance(linear, MaskedLinear) else weight != 0
        check_mask(caller, mask, weight)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            dtype=dtype or weight.dtype,
            memory=memory,
        )
        layer.bitmap, layer.values = compress_weight(weight.to(layer.values.dtype), mask)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(layer.values.dtype, copy=True)
        layer._pack()
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to y [..., out_features], of x's dtype."""
        if is_exporting():
            return self._forward_exported(x)
        kernels = self._kernels
        kernel = kernels[-1]
        if len(kernels) > 1:
            batch = x.numel() // self.in_features
            for kernel in kernels:  # the last has no limit
                if batch <= kernel.limit:
                    break
        # Not as attributes, which nn.Module takes longer to find than a small layer to compute.
        buffers = self._buffers
        packed = kernel.packed
        if packed is not None and not (x.requires_grad and torch.is_grad_enabled()):
            return _sparse_linear(x, packed, buffers["bias"], self.out_features)  # type: ignore[no-any-return]
        structured = kernel.structured
        if structured is not None and structured.serves(x):
            return structured(x, buffers["bias"])
        if kernel.name == "compact":
            sizes = self.out_features, self.in_features
            return compact_linear(x, kernel, buffers["bias"], *sizes)
        return _compressed_linear(  # type: ignore[no-any-return]
            x,
            buffers["bitmap"],
            buffers["values"],
            kernel.weight,
            buffers["bias"],
            self.out_features,
            self.in_features,
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight [out_features, in_features], masked weights 0, decompressed.

        It cannot be assigned, and is made anew in each read, which takes longer than a call of the
        layer. A model that reads it in each call (torch's fused transformer path reads both feed-
        forward layers', T5 its ``wo``'s) is right, but gains nothing by that layer being sparse.
        """
        if is_exporting():
            return self._weight_exported()
        return self._decompressed(self.values)

    def to_dense(self) -> nn.Linear:
        """The same layer as a plain ``nn.Linear``, its masked weights 0."""
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            device="meta",
            dtype=self.values.dtype,
        )
        linear.weight = nn.Parameter(self._decompressed(self.values))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)

    @property
    def nbytes(self) -> int:
        """The bytes that the layer holds in memory: compressed form, bias and packed kernels."""
        return sum(tensor.nbytes for tensor in self.buffers()) + held_bytes(self._kernels)

    @property
    def choice(self) -> Choice:
        """Which kernels serve which batch sizes, and why."""
        return self._choice

    def extra_repr(self) -> str:
        """The sizes, and what was chosen."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, memory={self.memory!r}, {self._choice}"
        )

    def _forward_exported(self, x: Tensor) -> Tensor:
        """The same in standard operators, for runtimes that lack this library's."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self._weight_exported().to(x.dtype), bias)

    def _weight_exported(self) -> Tensor:
        lanes = torch.arange(8, dtype=torch.uint8, device=self.bitmap.device)
        bits = self.bitmap.unsqueeze(1) >> lanes
        shape = self.out_features, self.in_features
        mask = (bits & 1).flatten()[: shape[0] * shape[1]].bool().view(shape)
        return self.values.new_zeros(shape).masked_scatter(mask, self.values)

    def _pack(self, choice: Choice | None = None) -> None:
        """Chooses the kernels, unless told, and makes what they need from the compressed form."""
        weights = self.out_features * self.in_features
        device = self.bitmap.device.type
        if device != "cpu" and not (device == "cuda" and has_cuda_kernels()):
            density = self.values.numel() / max(weights, 1)
            reason = f"there are no kernels for {device}"
            self._choice = Choice("unknown", density, ((None, "compressed"),), reason)
            self._kernels: tuple[Kernel, ...] = (Kernel(math.inf, "compressed"),)
            return
        weight = self._decompressed(self.values)
        mask = self._decompressed(torch.ones_like(self.values)).bool()
        pattern = recognise(mask)
        if choice is None and self.memory == "small":
            kernels = ((None, "compressed"),)
            choice = Choice(pattern.name, pattern.density, kernels, "memory='small'")
        elif choice is None and device == "cuda":
            kernel = offered(weight, pattern)
            choice = choose_on_cuda(pattern, weights, self.values.dtype, kernel)
        shape = self.out_features, self.in_features
        self._choice = choice or choose(pattern, shape, cpu_capability(), self.values.dtype)
        made = {
            name: make_kernel(name, weight, mask, pattern)
            for name in {name for _, name in self._choice.kernels}
        }
        self._kernels = tuple(
            made[name]._replace(limit=math.inf if limit is None else limit)
            for limit, name in self._choice.kernels
        )

    def _decompressed(self, values: Tensor) -> Tensor:
        return decompress_weight(self.bitmap, values, self.out_features, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._pack()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Packed kernels are this machine's: a copy makes its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_kernels", "_choice")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._pack()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        errors, before = args[-1], dict(self._buffers)
        known = len(errors)
        self._buffers.update({k: None if v is None else v.clone() for k, v in before.items()})
        values = state_dict.get(prefix + "values")
        if values is not None:  # as many as its own bitmap keeps, whatever ours does
            self.values = self.values.new_empty(values.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if len(errors) == known:
            try:
                return self._pack()
            except ValueError as error:
                errors.append(f"{prefix}values and {prefix}bitmap do not fit: {error}")
        self._buffers.update(before)  # all or nothing: bitmap and values belong together

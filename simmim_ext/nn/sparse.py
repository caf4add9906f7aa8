"""A linear layer with few weights, packed for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _is_any_autocast_enabled
from torch.compiler import is_compiling, is_exporting

from ..ops._library import operator
from ..ops.compressed_linear import compress_weight, decompress_weight
from .choice import Choice
from .kernel import held_bytes
from .masked import MaskedLinear, check_linear, check_mask, check_sizes, like
from .packing import COMPRESSED, Made, decompress_exported, make_kernels, make_none

# Not the function of this name: in a small layer each Python call is felt.
_compressed_linear = operator("compressed_linear")

MEMORY = ("fast", "small")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with few weights kept, for inference; made by `from_linear`.

    Kept weights behave as in ``nn.Linear``, NaN and infinity included; a masked weight contributes
    nothing, whatever x holds. Differentiable in x and bias. Sparse kernels multiply and add in
    float32 whatever ``torch.set_float32_matmul_precision`` permits; where a dense kernel serves,
    torch honours the setting as in ``nn.Linear``. A bfloat16 layer may round x to bfloat16 (its
    dense, "tile" and "pair" kernels do), and adds in float32 all the same. Under autocast a float32
    layer's sparse kernels stay in float32, and y is of autocast's dtype; where a dense bfloat16
    product is faster, a layer of ``dtype=torch.bfloat16`` takes that.

    What is saved is the portable compressed form: a bit for each weight, and the kept weights'
    values, density + 1/32 of the dense size for float32. The packed kernels are made from it on the
    device at hand, whenever the layer is made, loaded, copied, unpickled, or moved to another
    device or dtype, or its buffers are assigned or changed in place (but through ``.data``, and in
    code that torch.compile has compiled, where nobody notices). Buffers lent for a call, as
    ``torch.func.functional_call`` lends them, are decompressed in it. ``torch.export`` exports an
    equivalent of standard operators on the compressed form; ``torch.fx`` traces a product with
    that form, which decompresses it in each call.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether there is a bias.
        device: where the layer lives; it has kernels for the CPU and CUDA.
        dtype: of values and bias: float32 (default), float64, float16 or bfloat16.
        memory: "fast" keeps what its kernels need beside the compressed form, after autocast in
            its dtype too; "small" keeps that form only, and decompresses it in each call.

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
        self.in_features = int(in_features)  # which may be numpy's
        self.out_features = int(out_features)
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
        """Packs a layer; the new one has whatever other attributes it was given, but not its hooks.

        Args:
            linear: the layer to pack; it stays as it is.
            mask: bool [out_features, in_features], True where a weight is kept. None: a
                MaskedLinear's own mask, a Linear's nonzero weights.
            dtype: of values and bias; None: the layer's own. With bfloat16 weights, float32 inputs
                give float32 outputs.
            memory: "fast" or "small"; see the class.

        Raises:
            ValueError: the mask has another shape, `memory` is unknown, or `linear` is on the meta
                device.
            TypeError: the mask is not bool, `linear` is another kind of layer or has a forward of
                its own, or `dtype` is none of float32, float64, float16 and bfloat16.
        """
        caller = "SparseLinear.from_linear"
        check_linear(caller, linear)
        weight = linear.weight.detach()
        if weight.is_meta:
            raise ValueError(
                f"{caller}: linear must hold weights, got one on the meta device; load it first"
            )
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
        bitmap, values = compress_weight(weight.to(layer.values.dtype), mask)
        layer._buffers.update(bitmap=bitmap, values=values)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().to(layer.values.dtype, copy=True)
        layer._pack()
        return like(linear, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to y [..., out_features], of x's dtype.

        x is of the layer's dtype, or float32 where that is float16 or bfloat16.
        """
        if not isinstance(x, Tensor):
            return self._forward_traced(x)
        compiling = is_compiling()
        if compiling and is_exporting():
            return self._forward_exported(x)
        # Not as attributes, which nn.Module takes longer to find than a small layer to compute.
        buffers: Any = self._buffers
        bitmap, values, bias = buffers["bitmap"], buffers["values"], buffers["bias"]
        made = self._made
        if bitmap is not made.bitmap or values is not made.values or values.requires_grad:
            # They are lent for this call, as by torch.func.functional_call; or it is refused.
            kernel = COMPRESSED
        else:
            if not compiling and (  # which cannot tell
                bitmap._version != made.bitmap_version or values._version != made.values_version
            ):
                made = self._follow()
            kernels = made.kernels
            kernel = kernels[-1]
            if len(kernels) > 1:
                batch = x.numel() // self.in_features
                for kernel in kernels:  # the last has no limit
                    if batch <= kernel.limit:
                        break
        _, _, product, dense, packed = kernel
        if product is not None and product.serves(x, bias):
            return product(x, bias)
        weight = None
        if dense is not None:
            weight = dense.under_autocast(x) if _is_any_autocast_enabled() else dense.weight
        return _compressed_linear(  # type: ignore[no-any-return]
            x, bitmap, values, weight, bias, self.out_features, self.in_features, packed
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight [out_features, in_features], masked weights 0, decompressed.

        It cannot be assigned, and is made anew in each read, which takes longer than a call of the
        layer. A model that reads it in each call (torch's fused transformer path reads both feed-
        forward layers', T5 its ``wo``'s) is right, but gains nothing by that layer being sparse,
        and must take the layer's dtype.
        """
        if is_exporting():
            return decompress_exported(self.bitmap, self.values, self._shape)
        return decompress_weight(self.bitmap, self.values, *self._shape)

    def to_dense(self) -> nn.Linear:
        """The same layer as a plain ``nn.Linear``, its masked weights 0."""
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            device="meta",
            dtype=self.values.dtype,
        )
        linear.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return like(self, linear, own=("memory", "_made"))

    @property
    def nbytes(self) -> int:
        """The bytes that the layer holds in memory: compressed form, bias and packed kernels."""
        return sum(tensor.nbytes for tensor in self.buffers()) + held_bytes(self._made.kernels)

    @property
    def choice(self) -> Choice:
        """Which kernels serve which batch sizes, and why."""
        return self._made.choice

    def extra_repr(self) -> str:
        """The sizes, and what was chosen."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, memory={self.memory!r}, {self.choice}"
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _forward_exported(self, x: Tensor) -> Tensor:
        """The same in standard operators, for runtimes that lack this library's."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def _forward_traced(self, x: Any) -> Tensor:
        """The same for torch.fx, whose values have no size by which to choose a kernel."""
        if not isinstance(x, torch.fx.Proxy):
            raise TypeError(f"SparseLinear: x must be a tensor, got {type(x).__name__}")
        return _compressed_linear(  # type: ignore[no-any-return]
            x, self.bitmap, self.values, None, self.bias, self.out_features, self.in_features, None
        )

    def _pack(self, choice: Choice | None = None) -> Made:
        """Makes the kernels of the buffers, chosen unless told."""
        # What is made in inference mode has no version, and cannot be saved for a gradient.
        with torch.inference_mode(False):
            for name, buffer in self._buffers.items():
                if buffer is not None and buffer.is_inference():
                    self._buffers[name] = buffer.clone()
            self._made = make_kernels(self.bitmap, self.values, self._shape, self.memory, choice)
        return self._made

    def _follow(self) -> Made:
        """The same where the buffers need not fit, as on their way from one weight to another."""
        try:
            return self._pack()
        except (TypeError, ValueError) as error:
            self._made = make_none(self.bitmap, self.values, self._shape, str(error))
            return self._made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        before = dict(self._buffers)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._check_dtypes()
        except Exception:
            self._buffers.update(before)
            raise
        self._follow()
        return self

    def _check_dtypes(self) -> None:
        if self.values.dtype not in DTYPES or self.bitmap.dtype != torch.uint8:
            raise TypeError(
                f"SparseLinear: values must be of one of {DTYPES}, and bitmap of torch.uint8, got"
                f" {self.values.dtype} and {self.bitmap.dtype}; use .to(dtype) with one of these"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter) and name in self._buffers:  # which it would leave
            raise TypeError(
                f"SparseLinear: {name} must be a tensor that is no Parameter; assign its .data, or"
                " train a MaskedLinear"
            )
        super().__setattr__(name, value)
        if name in ("bitmap", "values"):
            self._follow()

    def __getstate__(self) -> dict[str, Any]:
        # Packed kernels are this machine's: a copy makes its own.
        return {k: v for k, v in self.__dict__.items() if k != "_made"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._follow()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # All or nothing, and at once for threads that call: bitmap and values belong together.
        given = [name for name in ("bitmap", "values") if prefix + name in state_dict]
        errors = args[-1]
        known = len(errors)
        if len(given) == 1:
            text = f"{prefix}bitmap and {prefix}values belong together, got {given[0]} alone"
            errors.append(text)
            return
        buffers = {k: None if v is None else v.clone() for k, v in self._buffers.items()}
        values = state_dict.get(prefix + "values")
        if isinstance(values, Tensor):  # as many as its own bitmap keeps, whatever ours does
            buffers["values"] = self.values.new_empty(values.shape)
        loaded = type(self).__new__(type(self))
        vars(loaded).update(vars(self), _buffers=buffers)
        try:
            super(SparseLinear, loaded)._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            if len(errors) == known:
                loaded._pack()
                vars(self).update(vars(loaded))
        except (RuntimeError, TypeError, ValueError) as error:
            errors.append(f"{prefix}values and {prefix}bitmap do not fit: {error}")

// Packed products.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/sparse_linear.h"

namespace simmim {

// The operator as the dispatcher calls it.
at::Tensor sparse_linear(const at::Tensor& x, const at::Tensor& packed,
                         const std::optional<at::Tensor>& bias, int64_t out_features);

// On float32 tensors that are checked and contiguous; CPU only:

// weight and mask [out_features, in_features] -> packed [bytes] uint8. `transposed` packs the
// transpose, for products with W in the place of W^T. `is_bfloat16`: the weights are such numbers,
// and the layout planes keeps them so.
at::Tensor pack_weight(const at::Tensor& weight, const at::Tensor& mask, Layout layout,
                       bool transposed = false, bool is_bfloat16 = false);

PackedHeader header_of(const at::Tensor& packed);

// Whether a layout multiplies in bfloat16, and takes x as such or as float32.
inline bool is_half(Layout layout) { return layout == Layout::tile || layout == Layout::pair; }

// x [..., in_features] W^T + bias [out_features] -> [..., out_features].
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed,
                         const std::optional<at::Tensor>& bias);

}  // namespace simmim

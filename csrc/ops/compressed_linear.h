// The operators on compressed weights, as the dispatcher calls them.
//
//   compressed_linear(x, bitmap, values, W, b, ..., packed)  x W^T + b  [..., in]  -> [..., out]
//   compressed_linear_input_grad(g, bitmap, values, W, ...)  g W        [..., out] -> [..., in]
//
// Each one's gradient is the other. W [out, in] is what bitmap and values are decompressed to, in
// values' dtype or another, which then is the product's; without it the product decompresses.
// packed is what pack_sparse_weight made of W.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace simmim {

at::Tensor decompress_weight(const at::Tensor& bitmap, const at::Tensor& values,
                             int64_t out_features, int64_t in_features);

at::Tensor compressed_linear(const at::Tensor& x, const at::Tensor& bitmap,
                             const at::Tensor& values, const std::optional<at::Tensor>& weight,
                             const std::optional<at::Tensor>& bias, int64_t out_features,
                             int64_t in_features, const std::optional<at::Tensor>& packed);

at::Tensor compressed_linear_input_grad(const at::Tensor& grad, const at::Tensor& bitmap,
                                        const at::Tensor& values,
                                        const std::optional<at::Tensor>& weight,
                                        int64_t out_features, int64_t in_features);

// What the product is computed in.
inline const at::Tensor& multiplied(const at::Tensor& values,
                                    const std::optional<at::Tensor>& weight) {
  return weight.has_value() ? *weight : values;
}

inline at::Tensor whole_weight(const at::Tensor& bitmap, const at::Tensor& values,
                               const std::optional<at::Tensor>& weight, int64_t out_features,
                               int64_t in_features) {
  return weight.has_value() ? *weight
                            : decompress_weight(bitmap, values, out_features, in_features);
}

}  // namespace simmim

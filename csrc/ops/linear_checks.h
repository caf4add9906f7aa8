// Argument checks that the linear operators share. Texts: operator, argument, rule, value.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/compressed_linear.h"
#include "backend.h"
#include "compressed_linear.h"

namespace simmim {

inline std::string dtype_name(const at::Tensor& t) {
  return std::string(c10::getDtypeNames(t.scalar_type()).first);
}

// Samples of x [..., features].
inline int64_t batch_of(const at::Tensor& x) {
  return c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
}

// x [..., features] as [samples, features]. Looks at no size, which torch.compile would take for a
// constant.
inline at::Tensor rows_of(const at::Tensor& x) {
  return x.dim() > 1 ? x.flatten(0, -2) : x.unsqueeze(0);
}

inline void check_floating(const char* op, const char* name, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      op, ": ", name, " must be float32, float64, float16 or bfloat16, got ", dtype_name(t));
}

inline void check_mask(const char* op, const at::Tensor& mask) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, op, ": mask must be bool, got ",
                   dtype_name(mask));
  TORCH_CHECK_VALUE(mask.dim() == 2, op, ": mask must have shape [out_features, in_features], got ",
                    mask.sizes());
}

inline void check_weight(const char* op, const at::Tensor& weight, const at::Tensor& mask) {
  check_floating(op, "weight", weight);
  check_mask(op, mask);
  TORCH_CHECK_VALUE(weight.sizes() == mask.sizes(), op, ": mask must have weight's shape ",
                    weight.sizes(), ", got ", mask.sizes());
  TORCH_CHECK_VALUE(weight.device() == mask.device(), op, ": mask must be on weight's device ",
                    weight.device(), ", got ", mask.device());
}

inline void check_dtype_and_device(const char* op, const char* name, const at::Tensor& t,
                                   const char* like_name, const at::Tensor& like) {
  check_floating(op, name, t);
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), op, ": ", name,
                   " must have the dtype of ", like_name, ", ", dtype_name(like), ", got ",
                   dtype_name(t));
  TORCH_CHECK_VALUE(t.device() == like.device(), op, ": ", name, " must be on the device of ",
                    like_name, ", ", like.device(), ", got ", t.device());
}

inline void check_features(const char* op, const char* name, const at::Tensor& t, int64_t features,
                           const char* features_name) {
  TORCH_CHECK_VALUE(t.dim() >= 1 && t.size(-1) == features, op, ": ", name,
                    " must have shape [..., ", features_name, "] with ", features_name, " = ",
                    features, ", got ", t.sizes());
}

inline void check_bias_shape(const char* op, const at::Tensor& bias, int64_t out_features) {
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == out_features, op,
                    ": bias must have shape [out_features] = [", out_features, "], got ",
                    bias.sizes());
}

inline void check_bias(const char* op, const std::optional<at::Tensor>& bias, int64_t out_features,
                       const char* like_name, const at::Tensor& like) {
  if (!bias.has_value()) return;
  check_dtype_and_device(op, "bias", *bias, like_name, like);
  check_bias_shape(op, *bias, out_features);
}

// The operators' own arguments, the same on every device.

inline void check_masked_linear(const char* op, const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& mask, const std::optional<at::Tensor>& bias) {
  check_weight(op, weight, mask);
  check_dtype_and_device(op, "x", x, "weight", weight);
  check_features(op, "x", x, weight.size(1), "in_features");
  check_bias(op, bias, weight.size(0), "weight", weight);
}

inline void check_masked_input_grad(const char* op, const at::Tensor& grad,
                                    const at::Tensor& weight, const at::Tensor& mask) {
  check_weight(op, weight, mask);
  check_dtype_and_device(op, "grad", grad, "weight", weight);
  check_features(op, "grad", grad, weight.size(0), "out_features");
}

inline void check_masked_weight_grad(const char* op, const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& mask) {
  check_mask(op, mask);
  check_floating(op, "grad", grad);
  check_dtype_and_device(op, "x", x, "grad", grad);
  check_features(op, "grad", grad, mask.size(0), "out_features");
  check_features(op, "x", x, mask.size(1), "in_features");
  TORCH_CHECK_VALUE(grad.sizes().slice(0, grad.dim() - 1) == x.sizes().slice(0, x.dim() - 1), op,
                    ": grad and x must have the same batch axes, got ", grad.sizes(), " and ",
                    x.sizes());
  TORCH_CHECK_VALUE(mask.device() == grad.device(), op, ": mask must be on the device of grad, ",
                    grad.device(), ", got ", mask.device());
}

inline void check_compressed(const char* op, const at::Tensor& bitmap, const at::Tensor& values,
                             int64_t out_features, int64_t in_features) {
  check_floating(op, "values", values);
  TORCH_CHECK_TYPE(bitmap.scalar_type() == at::kByte, op, ": bitmap must be uint8, got ",
                   dtype_name(bitmap));
  TORCH_CHECK_VALUE(out_features >= 0 && in_features >= 0, op,
                    ": out_features and in_features must not be negative, got ", out_features,
                    " and ", in_features);
  int64_t weights = 0;
  TORCH_CHECK_VALUE(!__builtin_mul_overflow(out_features, in_features, &weights), op,
                    ": out_features * in_features must be below 2^63, got ", out_features, " and ",
                    in_features);
  const int64_t bytes = bitmap_bytes(weights);
  TORCH_CHECK_VALUE(bitmap.dim() == 1 && bitmap.size(0) == bytes, op,
                    ": bitmap must have shape [ceil(out_features * in_features / 8)] = [", bytes,
                    "], got ", bitmap.sizes());
  TORCH_CHECK_VALUE(values.dim() == 1, op, ": values must have shape [kept weights], got ",
                    values.sizes());
  TORCH_CHECK_VALUE(bitmap.device() == values.device(), op, ": bitmap must be on values' device ",
                    values.device(), ", got ", bitmap.device());
}

inline void check_kept(const char* op, const at::Tensor& values, int64_t kept) {
  TORCH_CHECK_VALUE(kept == values.size(0), op, ": values must have one entry for each of ", kept,
                    " bits set in bitmap, got ", values.sizes());
}

// weight, where it is given: [out_features, in_features] in values' dtype or another, which then is
// the product's.
inline void check_dense_weight(const char* op, const at::Tensor& values,
                               const std::optional<at::Tensor>& weight, int64_t out_features,
                               int64_t in_features) {
  if (!weight.has_value()) return;
  check_floating(op, "weight", *weight);
  TORCH_CHECK_VALUE(weight->device() == values.device(), op,
                    ": weight must be on the device of values, ", values.device(), ", got ",
                    weight->device());
  TORCH_CHECK_VALUE(weight->sizes() == at::IntArrayRef({out_features, in_features}), op,
                    ": weight must have shape [out_features, in_features] = [", out_features, ", ",
                    in_features, "], got ", weight->sizes());
}

inline const char* multiplied_name(const at::Tensor& values,
                                   const std::optional<at::Tensor>& weight) {
  return weight.has_value() && weight->scalar_type() != values.scalar_type() ? "weight" : "values";
}

inline void check_compressed_linear(const char* op, const at::Tensor& x, const at::Tensor& bitmap,
                                    const at::Tensor& values,
                                    const std::optional<at::Tensor>& weight,
                                    const std::optional<at::Tensor>& bias, int64_t out_features,
                                    int64_t in_features) {
  check_compressed(op, bitmap, values, out_features, in_features);
  check_features(op, "x", x, in_features, "in_features");
  check_floating(op, "x", x);
  check_dense_weight(op, values, weight, out_features, in_features);
  const at::Tensor& like = multiplied(values, weight);
  const char* like_name = multiplied_name(values, weight);
  if (c10::isReducedFloatingType(like.scalar_type()) && x.scalar_type() == at::kFloat) {
    TORCH_CHECK_VALUE(x.device() == values.device(), op, ": x must be on the device of values, ",
                      values.device(), ", got ", x.device());
  } else {
    check_dtype_and_device(op, "x", x, like_name, like);
  }
  check_bias(op, bias, out_features, like_name, like);
}

inline void check_compressed_input_grad(const char* op, const at::Tensor& grad,
                                        const at::Tensor& bitmap, const at::Tensor& values,
                                        const std::optional<at::Tensor>& weight,
                                        int64_t out_features, int64_t in_features) {
  check_compressed(op, bitmap, values, out_features, in_features);
  check_dense_weight(op, values, weight, out_features, in_features);
  check_features(op, "grad", grad, out_features, "out_features");
  check_dtype_and_device(op, "grad", grad, multiplied_name(values, weight),
                         multiplied(values, weight));
}

inline void check_sparse_linear(const char* op, const at::Tensor& x, int64_t in_features,
                                const std::optional<at::Tensor>& bias, int64_t out_features) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 ||
                       x.scalar_type() == at::kHalf,
                   op, ": x must be float32, float16 or bfloat16, got ", dtype_name(x));
  check_features(op, "x", x, in_features, "in_features");
  if (!bias.has_value()) return;
  check_floating(op, "bias", *bias);
  check_bias_shape(op, *bias, out_features);
  TORCH_CHECK_VALUE(bias->device() == x.device(), op, ": bias must be on x's device ", x.device(),
                    ", got ", bias->device());
}

}  // namespace simmim

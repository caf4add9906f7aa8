// Argument checks that the linear operators share. Texts: operator, argument, rule, value.
#pragma once

#include <ATen/ATen.h>

#include "backend.h"

namespace simmim {

inline std::string dtype_name(const at::Tensor& t) {
  return std::string(c10::getDtypeNames(t.scalar_type()).first);
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

}  // namespace simmim

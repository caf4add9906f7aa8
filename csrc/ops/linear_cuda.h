// What the linear operators on CUDA have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/special_rows.h"
#include "backend.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {

inline bool is_double(const at::Tensor& t) { return t.scalar_type() == at::kDouble; }

// Calls call(Stored{}) with the kernels' type of a tensor's float32, float16 or bfloat16 values.
template <typename Call>
void with_stored(const at::Tensor& t, const Call& call) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return call(float{});
    case at::kHalf:
      return call(Half{});
    case at::kBFloat16:
      return call(BFloat16{});
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernel for ", t.scalar_type());
  }
}

template <typename Stored>
const Stored* values_of(const at::Tensor& t) {
  return static_cast<const Stored*>(t.const_data_ptr());
}
template <typename Stored>
const Stored* values_of(const std::optional<at::Tensor>& t) {
  return t.has_value() ? values_of<Stored>(*t) : nullptr;
}
inline const uint8_t* bytes_of(const at::Tensor& t) { return values_of<uint8_t>(t); }

// y = x W^T + b by torch, W [out, in] holding 0 where it is masked; exact where x has infinities or
// NaNs, for which `mask` [out, in] bool, or the bitmap of compressed_linear, tells what is kept.
at::Tensor dense_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& kept,
                        const std::optional<at::Tensor>& bias);

}  // namespace simmim
#endif

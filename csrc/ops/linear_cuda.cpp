#include "linear_cuda.h"

#ifdef SIMMIM_WITH_CUDA
#include <ATen/ops/linear.h>

namespace simmim {
namespace {

template <typename Stored>
void repair(at::Tensor& y, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& kept,
            const std::optional<at::Tensor>& bias) {
  const bool is_mask = kept.scalar_type() == at::kBool;
  const SpecialRowsArgs<Stored> args{values_of<Stored>(x),
                                     values_of<Stored>(weight),
                                     is_mask ? bytes_of(kept) : nullptr,
                                     is_mask ? nullptr : bytes_of(kept),
                                     values_of<Stored>(bias),
                                     static_cast<Stored*>(y.mutable_data_ptr()),
                                     y.numel() / y.size(-1),
                                     weight.size(0),
                                     weight.size(1),
                                     weight.stride(0),
                                     weight.stride(1)};
  on_cuda(y, [&](void* stream) { return special_rows_cuda(args, stream); });
}

}  // namespace

at::Tensor dense_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& kept,
                        const std::optional<at::Tensor>& bias) {
  TORCH_INTERNAL_ASSERT(weight.is_non_overlapping_and_dense());
  at::Tensor y = at::linear(x, weight, bias).contiguous();
  if (y.numel() == 0) return y;
  const at::Tensor rows = x.contiguous();
  const std::optional<at::Tensor> added =
      bias.has_value() ? std::optional(bias->contiguous()) : std::nullopt;
  if (is_double(y)) {
    repair<double>(y, rows, weight, kept, added);
  } else {
    with_stored(y, [&](auto stored) { repair<decltype(stored)>(y, rows, weight, kept, added); });
  }
  return y;
}

}  // namespace simmim
#endif

#include "masked_product.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

#include "../kernels/masked_linear.h"
#include "interrupt.h"

namespace simmim {
namespace {

uint64_t exponent_bits(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return 0x7c00;
    case at::kBFloat16:
      return 0x7f80;
    case at::kFloat:
      return 0x7f800000;
    default:
      return 0x7ff0000000000000;
  }
}

// One read of y, which is small beside the product that made it.
bool all_finite(const at::Tensor& y) {
  TORCH_INTERNAL_ASSERT(y.is_contiguous());
  return all_finite_cpu({y.const_data_ptr(), y.numel(), static_cast<int64_t>(y.element_size()),
                         exponent_bits(y.scalar_type())});
}

}  // namespace

void recompute_special_rows(at::Tensor& y, const at::Tensor& x,
                            const std::function<at::Tensor()>& weight,
                            const std::function<at::Tensor()>& mask,
                            const std::optional<at::Tensor>& bias) {
  if (all_finite(y)) return;
  // Products of less than float32 may overflow where their sum does not.
  const auto wide = [](const at::Tensor& t) {
    return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat);
  };
  const at::Tensor kept = mask(), kept_weight = wide(weight());
  const int64_t batch = y.numel() / y.size(-1);  // y is not empty: something in it is not finite
  const at::Tensor inputs = x.reshape({batch, x.size(-1)});
  at::Tensor outputs = y.view({batch, y.size(-1)});
  for (int64_t row = 0; row < batch; ++row) {
    check_interrupt();
    // By y, not by x: torch's product of bfloat16 on AMX lets what is special in a row of x into
    // the row before, where in_features is odd (oneDNN in torch 2.13 and 2.14).
    if (outputs[row].isfinite().all().item<bool>()) continue;
    const at::Tensor input = inputs[row];
    const at::Tensor sums = at::where(kept, kept_weight * wide(input), 0).sum(1);
    outputs[row].copy_(bias.has_value() ? sums + wide(*bias) : sums);
  }
}

}  // namespace simmim

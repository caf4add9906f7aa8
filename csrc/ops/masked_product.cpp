#include "masked_product.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include "../kernels/masked_linear.h"
#include "interrupt.h"
#include "sparse_linear.h"

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

bool all_finite(const at::Tensor& t) {
  const at::Tensor values = t.contiguous();
  return all_finite_cpu({values.const_data_ptr(), values.numel(),
                         static_cast<int64_t>(values.element_size()),
                         exponent_bits(values.scalar_type())});
}

// Indices of the rows of x [batch, in] that spoil theirs of y [batch, out], which has such as well
// where the bias or a sum is infinite.
at::Tensor special_rows(const at::Tensor& y, const at::Tensor& x) {
  const at::Tensor clean = x.isfinite().all(1);
  at::Tensor special = clean.logical_not();
  // torch's product of bfloat16 on AMX lets what is special in a row of x into the row before,
  // where in_features is odd (oneDNN in torch 2.13 and 2.14).
  if (x.scalar_type() == at::kBFloat16) {
    const int64_t rest = x.size(0) - 1;
    special.narrow(0, 0, rest).logical_or_(clean.narrow(0, 1, rest).logical_not());
  }
  return special.logical_and_(y.isfinite().all(1).logical_not_()).nonzero().flatten();
}

// x W^T + b of the kept weights alone, a row at a time.
at::Tensor exact_double(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mask,
                        const std::optional<at::Tensor>& bias) {
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  for (int64_t row = 0; row < x.size(0); ++row) {
    check_interrupt();
    const at::Tensor sums = at::where(mask, weight * x[row], 0).sum(1);
    y[row].copy_(bias.has_value() ? sums + *bias : sums);
  }
  return y;
}

// The same in float32: products of less may overflow where their sum does not.
at::Tensor exact_float(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mask,
                       const std::optional<at::Tensor>& bias) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat).contiguous(); };
  const at::Tensor packed = pack_weight(wide(weight), mask.contiguous(), Layout::element);
  return packed_linear(wide(x), packed,
                       bias.has_value() ? std::optional(wide(*bias)) : std::nullopt);
}

}  // namespace

void recompute_special_rows(at::Tensor& y, const at::Tensor& x,
                            const std::function<at::Tensor()>& weight,
                            const std::function<at::Tensor()>& mask,
                            const std::optional<at::Tensor>& bias) {
  // One read of y, which is small beside the product that made it; mostly there is no more to do.
  if (all_finite(y) || all_finite(x)) return;
  const int64_t batch = y.numel() / y.size(-1);  // y is not empty: something in it is not finite
  const at::Tensor inputs = x.reshape({batch, x.size(-1)});
  at::Tensor outputs = y.view({batch, y.size(-1)});
  const at::Tensor rows = special_rows(outputs, inputs);
  if (rows.numel() == 0) return;
  const auto exact = y.scalar_type() == at::kDouble ? exact_double : exact_float;
  outputs.index_copy_(
      0, rows, exact(inputs.index_select(0, rows), weight(), mask(), bias).to(y.scalar_type()));
}

}  // namespace simmim

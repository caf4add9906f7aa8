// Products with masked weights on CUDA: torch's own on W*M, and kernels that read W and M once for
// batches so small that making W*M takes the time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "../kernels/masked_linear.h"
#include "linear_checks.h"
#include "linear_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool is_skinny(const Tensor& x, int64_t batch) { return batch <= kSkinnyBatch && !is_double(x); }

// A select and not a product: what is masked contributes nothing, NaN included.
Tensor masked(const Tensor& values, const Tensor& mask) {
  return at::where(mask, values.contiguous(), 0);
}

Tensor masked_linear_on_cuda(const Tensor& x, const Tensor& weight, const Tensor& mask,
                             const OptionalTensor& bias) {
  check_masked_linear("masked_linear", x, weight, mask, bias);
  const Tensor kept = mask.contiguous();
  const int64_t batch = batch_of(x), out_features = weight.size(0);
  if (!is_skinny(x, batch)) return dense_linear(x, masked(weight, kept), kept, bias);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_features;
  Tensor y = at::empty(shape, x.options());
  const Tensor rows = x.contiguous(), full = weight.contiguous();
  const OptionalTensor added = bias.has_value() ? OptionalTensor(bias->contiguous()) : std::nullopt;
  with_stored(x, [&](auto stored) {
    using Stored = decltype(stored);
    const MaskedLinearArgs<Stored> args{values_of<Stored>(rows),
                                        values_of<Stored>(full),
                                        bytes_of(kept),
                                        values_of<Stored>(added),
                                        static_cast<Stored*>(y.mutable_data_ptr()),
                                        batch,
                                        out_features,
                                        weight.size(1)};
    on_cuda(y, [&](void* stream) { return masked_linear_cuda(args, stream); });
  });
  return y;
}

Tensor masked_input_grad_on_cuda(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  check_masked_input_grad("masked_linear_input_grad", grad, weight, mask);
  const Tensor kept = mask.contiguous();
  return dense_linear(grad, masked(weight, kept).t(), kept, {});
}

Tensor masked_weight_grad_on_cuda(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  check_masked_weight_grad("masked_linear_weight_grad", grad, x, mask);
  const int64_t out_features = mask.size(0), in_features = mask.size(1), batch = batch_of(x);
  const Tensor grad_rows = grad.reshape({batch, out_features}).contiguous();
  const Tensor x_rows = x.reshape({batch, in_features}).contiguous(), kept = mask.contiguous();
  if (!is_skinny(x, batch)) return masked(at::mm(grad_rows.t(), x_rows), kept);
  Tensor product = at::empty({out_features, in_features}, grad.options());
  with_stored(x, [&](auto stored) {
    using Stored = decltype(stored);
    const MaskedOuterArgs<Stored> args{values_of<Stored>(grad_rows),
                                       values_of<Stored>(x_rows),
                                       bytes_of(kept),
                                       static_cast<Stored*>(product.mutable_data_ptr()),
                                       batch,
                                       out_features,
                                       in_features};
    on_cuda(product, [&](void* stream) { return masked_outer_cuda(args, stream); });
  });
  return product;
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("masked_linear", SIMMIM_ON_CUDA(masked_linear_on_cuda));
  m.impl("masked_linear_input_grad", SIMMIM_ON_CUDA(masked_input_grad_on_cuda));
  m.impl("masked_linear_weight_grad", SIMMIM_ON_CUDA(masked_weight_grad_on_cuda));
}

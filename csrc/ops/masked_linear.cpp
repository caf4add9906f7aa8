// y = x (W*M)^T + b, and the two products that its gradients are:
//
//   masked_linear(x, W, M, b)           x (W*M)^T + b  [..., in]  -> [..., out]
//   masked_linear_input_grad(g, W, M)   g (W*M)        [..., out] -> [..., in]
//   masked_linear_weight_grad(g, x, M)  (g^T x)*M      [out, in]
//
// Each one's gradients are the others, so derivatives of every order exist.

#include "../kernels/masked_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "backend.h"
#include "linear_checks.h"
#include "masked_product.h"
#include "parallel.h"
#include "sparse_linear.h"
#include "transforms.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Below so many weights, calls are what takes the time.
constexpr int64_t kSmallestPacked = 1 << 14;

constexpr char kForward[] = "masked_linear";
constexpr char kInputGrad[] = "masked_linear_input_grad";
constexpr char kWeightGrad[] = "masked_linear_weight_grad";

// ---------------------------------------------------------------------- the operators, dispatched

using Product = Tensor(const Tensor&, const Tensor&, const Tensor&);

Tensor masked_linear(const Tensor& x, const Tensor& weight, const Tensor& mask,
                     const OptionalTensor& bias) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&);
  static const auto op = dispatched<Signature>("simmim_ext::masked_linear");
  return op.call(x, weight, mask, bias);
}

Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  static const auto op = dispatched<Product>("simmim_ext::masked_linear_input_grad");
  return op.call(grad, weight, mask);
}

Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  static const auto op = dispatched<Product>("simmim_ext::masked_linear_weight_grad");
  return op.call(grad, x, mask);
}

// ------------------------------------------------------------------------------------ CPU kernels

Tensor mask_weight(const Tensor& weight, const Tensor& mask) {
  const Tensor full = weight.contiguous(), keep = mask.contiguous();
  Tensor masked = at::empty_like(full);
  const MaskWeightArgs args{full.const_data_ptr(),
                            static_cast<const uint8_t*>(keep.const_data_ptr()),
                            masked.mutable_data_ptr(), full.element_size()};
  parallel_ranges(full.numel(), full.numel(),
                  [&](int64_t begin, int64_t end) { mask_weight_cpu(args, begin, end); });
  return masked;
}

int64_t count_kept(const Tensor& mask) {
  return count_mask_cpu(static_cast<const uint8_t*>(mask.const_data_ptr()), 0, mask.numel());
}

// Whether packing the weight anew and multiplying by what is kept beats masking it and a full
// product. Times in those of one multiplication of the full product, measured at 1024 x 1024.
bool packing_pays(const Tensor& weight, const Tensor& mask, int64_t batch) {
  if (weight.scalar_type() != at::kFloat || weight.numel() < kSmallestPacked) return false;
  constexpr double kMultiply = 1.4, kPack = 60, kScan = 9, kMask = 10;
  const double kept = count_kept(mask), all = mask.numel();
  return kept * (kMultiply * batch + kPack) + all * kScan < all * (batch + kMask);
}

// Whether the kept entries alone take less time than a full product that is then masked.
bool sampling_pays(double kept, double all, int64_t batch) {
  constexpr double kMultiply = 2.2, kSum = 80, kClear = 20, kMask = 35;
  const int64_t width = divide_up(batch, kBatchLanes) * kBatchLanes;
  return kept * (kMultiply * width + kSum) + all * kClear < all * (batch + kMask);
}

// t [batch, features] -> [features, width], the batch padded with 0 to whole vectors.
Tensor transposed(const Tensor& t) {
  const int64_t blocks = (t.size(0) + kBatchLanes - 1) / kBatchLanes;
  Tensor result = at::empty({t.size(1), blocks * kBatchLanes}, t.options());
  const TransposeArgs args{t.const_data_ptr<float>(), result.mutable_data_ptr<float>(), t.size(0),
                           t.size(1), blocks * kBatchLanes};
  parallel_ranges(blocks, t.numel(),
                  [&](int64_t begin, int64_t end) { transpose_blocks_cpu(args, begin, end); });
  return result;
}

Tensor forward_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask,
                   const OptionalTensor& bias) {
  check_masked_linear(kForward, x, weight, mask, bias);
  const Tensor keep = mask.contiguous();
  if (packing_pays(weight, keep, batch_of(x))) {
    const Tensor packed = pack_weight(weight.contiguous(), keep, Layout::element);
    return packed_linear(x.contiguous(), packed,
                         bias.has_value() ? OptionalTensor(bias->contiguous()) : std::nullopt);
  }
  const Tensor masked = mask_weight(weight, keep);
  Tensor y = at::linear(x, masked, bias).contiguous();
  recompute_special_rows(y, x, [&] { return masked; }, [&] { return mask; }, bias);
  return y;
}

Tensor input_grad_cpu(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  check_masked_input_grad(kInputGrad, grad, weight, mask);
  const Tensor keep = mask.contiguous();
  if (packing_pays(weight, keep, batch_of(grad))) {
    const Tensor packed =
        pack_weight(weight.contiguous(), keep, Layout::element, /*transposed=*/true);
    return packed_linear(grad.contiguous(), packed, {});
  }
  const Tensor masked = mask_weight(weight, keep).t();
  Tensor product = at::linear(grad, masked).contiguous();
  recompute_special_rows(product, grad, [&] { return masked; }, [&] { return mask.t(); }, {});
  return product;
}

Tensor weight_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  check_masked_weight_grad(kWeightGrad, grad, x, mask);
  const int64_t out_features = mask.size(0), in_features = mask.size(1);
  const int64_t batch = batch_of(grad);
  const Tensor grad_rows = grad.reshape({batch, out_features}).contiguous();
  const Tensor x_rows = x.reshape({batch, in_features}).contiguous();
  const Tensor keep = mask.contiguous();
  const int64_t kept = count_kept(keep);
  const bool fits = in_features <= INT32_MAX;  // the numbers of columns, of which a row is sampled
  if (grad.scalar_type() != at::kFloat || !fits || !sampling_pays(kept, keep.numel(), batch)) {
    return mask_weight(at::mm(grad_rows.t(), x_rows), keep);
  }
  const Tensor grad_t = transposed(grad_rows), x_t = transposed(x_rows);
  Tensor product = at::empty({out_features, in_features}, grad.options());
  const SampledProductArgs args{grad_t.const_data_ptr<float>(),
                                x_t.const_data_ptr<float>(),
                                static_cast<const uint8_t*>(keep.const_data_ptr()),
                                product.mutable_data_ptr<float>(),
                                x_t.size(1),
                                in_features};
  parallel_ranges(out_features, kept * batch,
                  [&](int64_t begin, int64_t end) { sampled_product_cpu(args, begin, end); });
  return product;
}

// --------------------------------------------------------------------------------------- autograd

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::tensor_list;
using Guard = at::AutoDispatchBelowADInplaceOrView;

// What is saved for a gradient, if that is needed.
Tensor saved_if(bool needed, const Tensor& t) { return needed ? t : Tensor(); }

struct Forward : Function<Forward> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& mask, const OptionalTensor& bias) {
    context->save_for_backward(
        {saved_if(weight.requires_grad(), x), saved_if(x.requires_grad(), weight), mask});
    context->saved_data["has_bias"] = bias.has_value();
    const Guard guard;
    return masked_linear(x, weight, mask, bias);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &grad = grads[0], &x = saved[0], &weight = saved[1], &mask = saved[2];
    tensor_list result(4);
    if (context->needs_input_grad(0)) result[0] = masked_linear_input_grad(grad, weight, mask);
    if (context->needs_input_grad(1)) result[1] = masked_linear_weight_grad(grad, x, mask);
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(3)) {
      result[3] = rows_of(grad).sum(0);
    }
    return result;
  }
};

struct InputGrad : Function<InputGrad> {
  static Tensor forward(AutogradContext* context, const Tensor& grad, const Tensor& weight,
                        const Tensor& mask) {
    context->save_for_backward(
        {saved_if(weight.requires_grad(), grad), saved_if(grad.requires_grad(), weight), mask});
    const Guard guard;
    return masked_linear_input_grad(grad, weight, mask);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &outer = grads[0], &grad = saved[0], &weight = saved[1], &mask = saved[2];
    tensor_list result(3);
    if (context->needs_input_grad(0)) result[0] = masked_linear(outer, weight, mask, {});
    if (context->needs_input_grad(1)) result[1] = masked_linear_weight_grad(grad, outer, mask);
    return result;
  }
};

struct WeightGrad : Function<WeightGrad> {
  static Tensor forward(AutogradContext* context, const Tensor& grad, const Tensor& x,
                        const Tensor& mask) {
    context->save_for_backward(
        {saved_if(x.requires_grad(), grad), saved_if(grad.requires_grad(), x), mask});
    const Guard guard;
    return masked_linear_weight_grad(grad, x, mask);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &outer = grads[0], &grad = saved[0], &x = saved[1], &mask = saved[2];
    tensor_list result(3);
    if (context->needs_input_grad(0)) result[0] = masked_linear(x, outer, mask, {});
    if (context->needs_input_grad(1)) result[1] = masked_linear_input_grad(grad, outer, mask);
    return result;
  }
};

bool requires_grad(const OptionalTensor& t) { return t.has_value() && t->requires_grad(); }

// Without a gradient to record, the operator is called as it is: recording costs microseconds.
template <typename Recorded, typename Op, typename Composed, typename... Tensors>
Tensor record(Op op, Composed composed, const Tensors&... tensors) {
  const bool recorded = at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
  if ((has_tangent(tensors) || ...) || (recorded && is_transformed())) return composed(tensors...);
  if (recorded) return Recorded::apply(tensors...);
  const Guard guard;
  return op(tensors...);
}

Tensor forward_composed(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const OptionalTensor& bias) {
  return at::linear(x, at::where(mask, weight, 0), bias);
}

Tensor forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const OptionalTensor& bias) {
  return record<Forward>(masked_linear, forward_composed, x, weight, mask, bias);
}

Tensor input_grad_composed(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  return at::matmul(grad, at::where(mask, weight, 0));
}

Tensor input_grad_autograd(const Tensor& grad, const Tensor& weight, const Tensor& mask) {
  return record<InputGrad>(masked_linear_input_grad, input_grad_composed, grad, weight, mask);
}

Tensor weight_grad_composed(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  return at::where(mask, at::mm(rows_of(grad).t(), rows_of(x)), 0);
}

Tensor weight_grad_autograd(const Tensor& grad, const Tensor& x, const Tensor& mask) {
  return record<WeightGrad>(masked_linear_weight_grad, weight_grad_composed, grad, x, mask);
}

// --------------------------------------------------------------------------------------- autocast

// As F.linear under autocast: computed in the lower precision. The gradients run outside autocast
// on what the forward saved, so the forward alone needs casting.
template <c10::DeviceType device>
Tensor forward_autocast(const Tensor& x, const Tensor& weight, const Tensor& mask,
                        const OptionalTensor& bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  return masked_linear(at::autocast::cached_cast(dtype, x, device),
                       at::autocast::cached_cast(dtype, weight, device), mask,
                       at::autocast::cached_cast(dtype, bias, device));
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("masked_linear(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None) -> Tensor");
  m.def("masked_linear_input_grad(Tensor grad, Tensor weight, Tensor mask) -> Tensor");
  m.def("masked_linear_weight_grad(Tensor grad, Tensor x, Tensor mask) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("masked_linear", &simmim::forward_cpu);
  m.impl("masked_linear_input_grad", &simmim::input_grad_cpu);
  m.impl("masked_linear_weight_grad", &simmim::weight_grad_cpu);
}
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) {
  m.impl("masked_linear", &simmim::forward_autograd);
  m.impl("masked_linear_input_grad", &simmim::input_grad_autograd);
  m.impl("masked_linear_weight_grad", &simmim::weight_grad_autograd);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCPU, m) {
  m.impl("masked_linear", &simmim::forward_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCUDA, m) {
  m.impl("masked_linear", &simmim::forward_autocast<c10::DeviceType::CUDA>);
}

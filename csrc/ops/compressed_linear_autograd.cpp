// Derivatives and autocast of the operators on compressed weights.
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "backend.h"
#include "compressed_linear.h"
#include "linear_checks.h"
#include "transforms.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::tensor_list;

// What is compressed is not trained: of x, bias and grad alone. Gradients are computed in what the
// forward was, though they be asked for under autocast.

void save_weight(AutogradContext* context, const Tensor& bitmap, const Tensor& values,
                 const OptionalTensor& weight, int64_t out_features, int64_t in_features) {
  context->save_for_backward({bitmap, values, weight.value_or(Tensor())});
  context->saved_data["out_features"] = out_features;
  context->saved_data["in_features"] = in_features;
}

struct SavedWeight {
  Tensor bitmap, values;
  OptionalTensor weight;
  int64_t out_features, in_features;

  explicit SavedWeight(AutogradContext* context)
      : out_features(context->saved_data["out_features"].toInt()),
        in_features(context->saved_data["in_features"].toInt()) {
    const auto saved = context->get_saved_variables();
    bitmap = saved[0];
    values = saved[1];
    if (saved[2].defined()) weight = saved[2];
  }
};

struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& bitmap,
                        const Tensor& values, const OptionalTensor& weight,
                        const OptionalTensor& bias, int64_t out_features, int64_t in_features,
                        const OptionalTensor& packed) {
    save_weight(context, bitmap, values, weight, out_features, in_features);
    context->saved_data["bias_edge"] = bias.has_value() ? 3 + weight.has_value() : -1;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compressed_linear(x, bitmap, values, weight, bias, out_features, in_features, packed);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const SavedWeight saved(context);
    const Tensor& grad = grads[0];
    const at::ScalarType dtype = multiplied(saved.values, saved.weight).scalar_type();
    const int64_t bias_edge = context->saved_data["bias_edge"].toInt();
    tensor_list result(8);
    if (context->needs_input_grad(0)) {
      result[0] = compressed_linear_input_grad(grad.to(dtype), saved.bitmap, saved.values,
                                               saved.weight, saved.out_features, saved.in_features)
                      .to(grad.scalar_type());
    }
    if (bias_edge >= 0 && context->needs_input_grad(bias_edge)) {
      result[4] = rows_of(grad).sum(0).to(dtype);
    }
    return result;
  }
};

struct InputGrad : Function<InputGrad> {
  static Tensor forward(AutogradContext* context, const Tensor& grad, const Tensor& bitmap,
                        const Tensor& values, const OptionalTensor& weight, int64_t out_features,
                        int64_t in_features) {
    save_weight(context, bitmap, values, weight, out_features, in_features);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compressed_linear_input_grad(grad, bitmap, values, weight, out_features, in_features);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const SavedWeight saved(context);
    tensor_list result(6);
    if (context->needs_input_grad(0)) {
      result[0] = compressed_linear(grads[0], saved.bitmap, saved.values, saved.weight, {},
                                    saved.out_features, saved.in_features, {});
    }
    return result;
  }
};

void check_untrained(const char* op, const Tensor& values, const OptionalTensor& weight) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !values.requires_grad() && !(weight.has_value() && weight->requires_grad()), op,
      ": values and weight must not require a gradient; train a MaskedLinear");
}

bool requires_grad(const OptionalTensor& t) {
  return at::GradMode::is_enabled() && t.has_value() && t->requires_grad();
}

Tensor linear_autograd(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       int64_t out_features, int64_t in_features, const OptionalTensor& packed) {
  check_untrained("compressed_linear", values, weight);
  const bool recorded = requires_grad(x) || requires_grad(bias);
  if (has_tangent(x) || has_tangent(bias) || (recorded && is_transformed())) {
    const Tensor full = whole_weight(bitmap, values, weight, out_features, in_features);
    return at::linear(x.to(full.scalar_type()), full, bias).to(x.scalar_type());
  }
  if (recorded) {
    return Linear::apply(x, bitmap, values, weight, bias, out_features, in_features, packed);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return compressed_linear(x, bitmap, values, weight, bias, out_features, in_features, packed);
}

Tensor input_grad_autograd(const Tensor& grad, const Tensor& bitmap, const Tensor& values,
                           const OptionalTensor& weight, int64_t out_features,
                           int64_t in_features) {
  check_untrained("compressed_linear_input_grad", values, weight);
  const bool recorded = requires_grad(grad);
  if (has_tangent(grad) || (recorded && is_transformed())) {
    return at::matmul(grad, whole_weight(bitmap, values, weight, out_features, in_features));
  }
  if (recorded) return InputGrad::apply(grad, bitmap, values, weight, out_features, in_features);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return compressed_linear_input_grad(grad, bitmap, values, weight, out_features, in_features);
}

// (De)compressing is linear in the values, but nothing needs its gradient.
std::tuple<Tensor, Tensor> compress_autograd(const Tensor& weight, const Tensor& mask) {
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&);
  static const auto op = dispatched<Signature>("simmim_ext::compress_weight");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(weight, mask);
}

Tensor decompress_autograd(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                           int64_t in_features) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return decompress_weight(bitmap, values, out_features, in_features);
}

// As F.linear under autocast: computed in the lower precision. A weight that is given may be of it
// already, and saves casting the values; a packed one keeps its precision, as in sparse_linear.
template <c10::DeviceType device>
Tensor linear_autocast(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       int64_t out_features, int64_t in_features, const OptionalTensor& packed) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType lower = at::autocast::get_autocast_dtype(device);
  const at::ScalarType dtype = packed.has_value() ? values.scalar_type() : lower;
  const auto cast = [&](const auto& t) { return at::autocast::cached_cast(dtype, t, device); };
  const Tensor y = compressed_linear(cast(x), bitmap, weight.has_value() ? values : cast(values),
                                     cast(weight), cast(bias), out_features, in_features, packed);
  return packed.has_value() ? y.to(lower) : y;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) {
  m.impl("compress_weight", &simmim::compress_autograd);
  m.impl("decompress_weight", &simmim::decompress_autograd);
  m.impl("compressed_linear", &simmim::linear_autograd);
  m.impl("compressed_linear_input_grad", &simmim::input_grad_autograd);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCPU, m) {
  m.impl("compressed_linear", &simmim::linear_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCUDA, m) {
  m.impl("compressed_linear", &simmim::linear_autocast<c10::DeviceType::CUDA>);
}

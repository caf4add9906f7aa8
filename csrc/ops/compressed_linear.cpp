// Linear layers on compressed weights: a bitmap of the kept weights and their values.
#include "../kernels/compressed_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "backend.h"
#include "linear_checks.h"
#include "masked_product.h"
#include "parallel.h"
#include "transforms.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr char kCompress[] = "compress_weight";
constexpr char kDecompress[] = "decompress_weight";
constexpr char kLinear[] = "compressed_linear";

constexpr int64_t kBlockBytes = 1 << 18;  // of decompressed weights: what the L2 cache holds

// -------------------------------------------------------------------------------- compressed form

struct Compressed {
  Tensor bitmap, values;
  int64_t out_features, in_features;

  Compressed(const char* op, const Tensor& bitmap, const Tensor& values, int64_t out_features,
             int64_t in_features)
      : bitmap(bitmap.contiguous()),
        values(values.contiguous()),
        out_features(out_features),
        in_features(in_features) {
    check_compressed(op, bitmap, values, out_features, in_features);
  }

  const uint8_t* bits() const { return bitmap.const_data_ptr<uint8_t>(); }

  // Where the values of each block of `rows` rows begin; the last entry is their number.
  std::vector<int64_t> first_values(const char* op, int64_t rows) const {
    std::vector<int64_t> first = {0};
    for (int64_t row = 0; row < out_features; row += rows) {
      first.push_back(first.back() +
                      count_kept_cpu(bits(), row * in_features,
                                     std::min(row + rows, out_features) * in_features));
    }
    check_kept(op, values, first.back());
    return first;
  }

  // Rows [row, row + rows), whose values begin at `first_value`, to `weights` [rows, in_features].
  void decompress_rows(int64_t row, int64_t rows, int64_t first_value, void* weights) const {
    const auto* begin = static_cast<const uint8_t*>(values.const_data_ptr());
    const DecompressArgs args{bits(), begin + first_value * values.element_size(), weights,
                              values.element_size()};
    decompress_cpu(args, row * in_features, (row + rows) * in_features);
  }
};

std::tuple<Tensor, Tensor> compress_cpu(const Tensor& weight, const Tensor& mask) {
  check_weight(kCompress, weight, mask);
  const Tensor keep = mask.contiguous();
  Tensor bitmap = at::empty({bitmap_bytes(keep.numel())}, keep.options().dtype(at::kByte));
  const PackBitsArgs args{static_cast<const uint8_t*>(keep.const_data_ptr()),
                          bitmap.mutable_data_ptr<uint8_t>(), keep.numel()};
  parallel_ranges(bitmap.numel(), keep.numel(),
                  [&](int64_t begin, int64_t end) { pack_bits_cpu(args, begin, end); });
  return {bitmap, at::masked_select(weight, keep)};
}

Tensor decompress_cpu_op(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                         int64_t in_features) {
  const Compressed weight(kDecompress, bitmap, values, out_features, in_features);
  constexpr int64_t kRows = 64;
  const std::vector<int64_t> first = weight.first_values(kDecompress, kRows);
  Tensor dense = at::empty({out_features, in_features}, values.options());
  // A plain pointer: helper threads lack the caller's modes, which operators on tensors look at.
  auto* weights = static_cast<uint8_t*>(dense.mutable_data_ptr());
  parallel_ranges(first.size() - 1, dense.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block * kRows;
      weight.decompress_rows(row, std::min(kRows, out_features - row), first[block],
                             weights + row * in_features * values.element_size());
    }
  });
  return dense;
}

// ------------------------------------------------------------------------------------------ linear

Tensor decompress_weight(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                         int64_t in_features) {
  using Signature = Tensor(const Tensor&, const Tensor&, int64_t, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::decompress_weight");
  return op.call(bitmap, values, out_features, in_features);
}

Tensor decompress_mask(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                       int64_t in_features) {
  return decompress_weight(bitmap, at::ones_like(values), out_features, in_features).to(at::kBool);
}

Tensor compressed_linear(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                         const OptionalTensor& weight, const OptionalTensor& bias,
                         int64_t out_features, int64_t in_features) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                           const OptionalTensor&, int64_t, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::compressed_linear");
  return op.call(x, bitmap, values, weight, bias, out_features, in_features);
}

// Decompresses a block of rows at a time, which stays in the cache while it is multiplied.
Tensor linear_by_blocks(const Tensor& x, const Compressed& weight, const OptionalTensor& bias) {
  const int64_t row_bytes = std::max<int64_t>(weight.in_features * weight.values.element_size(), 1);
  const int64_t rows = std::max<int64_t>(kBlockBytes / row_bytes, 16);
  const std::vector<int64_t> first = weight.first_values(kLinear, rows);
  const Tensor inputs = x.reshape({batch_of(x), weight.in_features});
  Tensor y = at::empty({inputs.size(0), weight.out_features}, x.options());
  Tensor scratch =
      at::empty({std::min(rows, weight.out_features), weight.in_features}, weight.values.options());
  for (int64_t block = 0; block + 1 < static_cast<int64_t>(first.size()); ++block) {
    const int64_t row = block * rows, count = std::min(rows, weight.out_features - row);
    const Tensor dense = scratch.narrow(0, 0, count);
    weight.decompress_rows(row, count, first[block], dense.mutable_data_ptr());
    Tensor outputs = y.narrow(1, row, count);
    if (bias.has_value()) {
      at::addmm_out(outputs, bias->narrow(0, row, count), inputs, dense.t());
    } else {
      at::mm_out(outputs, inputs, dense.t());
    }
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.out_features;
  return y.view(shape);
}

Tensor linear_cpu(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                  const OptionalTensor& weight, const OptionalTensor& bias, int64_t out_features,
                  int64_t in_features) {
  check_compressed_linear(kLinear, x, bitmap, values, weight, bias, out_features, in_features);
  const bool cast = x.scalar_type() != values.scalar_type();
  const Tensor input = cast ? x.to(values.scalar_type()) : x;
  Tensor y;
  if (weight.has_value()) {
    y = at::linear(input, *weight, bias).contiguous();
  } else {
    const Compressed compressed(kLinear, bitmap, values, out_features, in_features);
    y = linear_by_blocks(input, compressed, bias);
  }
  recompute_special_rows(
      y, input, [&] { return decompress_cpu_op(bitmap, values, out_features, in_features); },
      [&] { return decompress_mask(bitmap, values, out_features, in_features); }, bias);
  return cast ? y.to(x.scalar_type()) : y;
}

// --------------------------------------------------------------------------------------- autograd

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Of x and bias; what is compressed is not trained.
struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& bitmap,
                        const Tensor& values, const OptionalTensor& weight,
                        const OptionalTensor& bias, int64_t out_features, int64_t in_features) {
    context->save_for_backward({bitmap, values});
    context->saved_data["out_features"] = out_features;
    context->saved_data["in_features"] = in_features;
    context->saved_data["bias_edge"] = bias.has_value() ? 3 + weight.has_value() : -1;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return compressed_linear(x, bitmap, values, weight, bias, out_features, in_features);
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    using Product = Tensor(const Tensor&, const Tensor&, const Tensor&);
    static const auto input_grad = dispatched<Product>("simmim_ext::masked_linear_input_grad");
    const auto saved = context->get_saved_variables();
    const Tensor &bitmap = saved[0], &values = saved[1];
    const int64_t out_features = context->saved_data["out_features"].toInt();
    const int64_t in_features = context->saved_data["in_features"].toInt();
    const int64_t bias_edge = context->saved_data["bias_edge"].toInt();
    tensor_list result(7);
    if (context->needs_input_grad(0)) {
      const Tensor weight = decompress_weight(bitmap, values, out_features, in_features);
      const Tensor mask = decompress_mask(bitmap, values, out_features, in_features);
      result[0] = input_grad.call(grads[0].to(values.scalar_type()), weight, mask)
                      .to(grads[0].scalar_type());
    }
    if (bias_edge >= 0 && context->needs_input_grad(bias_edge)) {
      result[4] =
          grads[0].reshape({batch_of(grads[0]), out_features}).sum(0).to(values.scalar_type());
    }
    return result;
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       int64_t out_features, int64_t in_features) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !values.requires_grad() && !(weight.has_value() && weight->requires_grad()), kLinear,
      ": values and weight must not require a gradient; train a MaskedLinear");
  const bool recorded = at::GradMode::is_enabled() &&
                        (x.requires_grad() || (bias.has_value() && bias->requires_grad()));
  if (has_tangent(x) || has_tangent(bias) || (recorded && is_transformed())) {
    const Tensor full = decompress_weight(bitmap, values, out_features, in_features);
    return at::linear(x.to(values.scalar_type()), full, bias).to(x.scalar_type());
  }
  if (recorded) {
    return Linear::apply(x, bitmap, values, weight, bias, out_features, in_features);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return compressed_linear(x, bitmap, values, weight, bias, out_features, in_features);
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

// --------------------------------------------------------------------------------------- autocast

template <c10::DeviceType device>
Tensor linear_autocast(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       int64_t out_features, int64_t in_features) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& t) { return at::autocast::cached_cast(dtype, t, device); };
  return compressed_linear(cast(x), bitmap, cast(values), cast(weight), cast(bias), out_features,
                           in_features);
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("compress_weight(Tensor weight, Tensor mask) -> (Tensor bitmap, Tensor values)");
  m.def(
      "decompress_weight(Tensor bitmap, Tensor values, int out_features, int in_features) -> "
      "Tensor");
  m.def(
      "compressed_linear(Tensor x, Tensor bitmap, Tensor values, Tensor? weight, Tensor? bias, int "
      "out_features, int in_features) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("compress_weight", &simmim::compress_cpu);
  m.impl("decompress_weight", &simmim::decompress_cpu_op);
  m.impl("compressed_linear", &simmim::linear_cpu);
}
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) {
  m.impl("compress_weight", &simmim::compress_autograd);
  m.impl("decompress_weight", &simmim::decompress_autograd);
  m.impl("compressed_linear", &simmim::linear_autograd);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCPU, m) {
  m.impl("compressed_linear", &simmim::linear_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCUDA, m) {
  m.impl("compressed_linear", &simmim::linear_autocast<c10::DeviceType::CUDA>);
}

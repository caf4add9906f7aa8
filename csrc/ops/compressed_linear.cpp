// Linear layers on compressed weights: a bitmap of the kept weights and their values.
#include "compressed_linear.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/compressed_linear.h"
#include "backend.h"
#include "linear_checks.h"
#include "masked_product.h"
#include "parallel.h"
#include "sparse_linear.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr char kCompress[] = "compress_weight";
constexpr char kDecompress[] = "decompress_weight";
constexpr char kLinear[] = "compressed_linear";
constexpr char kInputGrad[] = "compressed_linear_input_grad";

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

  // The rows of a block that would have so many: all of them where rows have no weights, for there
  // may be more of those than there is memory to say where each block begins.
  int64_t rows_of_block(int64_t rows) const {
    return in_features == 0 ? std::max<int64_t>(out_features, 1) : rows;
  }

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
  const int64_t rows = weight.rows_of_block(64);
  const std::vector<int64_t> first = weight.first_values(kDecompress, rows);
  Tensor dense = at::empty({out_features, in_features}, values.options());
  // A plain pointer: helper threads lack the caller's modes, which operators on tensors look at.
  auto* weights = static_cast<uint8_t*>(dense.mutable_data_ptr());
  parallel_ranges(first.size() - 1, dense.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block * rows;
      weight.decompress_rows(row, std::min(rows, out_features - row), first[block],
                             weights + row * in_features * values.element_size());
    }
  });
  return dense;
}

// ---------------------------------------------------------------------------------------- products

Tensor decompress_mask(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                       int64_t in_features) {
  const Tensor ones = at::ones_like(values, values.options().dtype(at::kHalf));
  const Tensor mask = decompress_cpu_op(bitmap, ones, out_features, in_features);
  return mask.view(at::kShort).to(at::kBool);  // which takes a tenth of the time that halves take
}

// Calls product(row, weights [rows, in_features]) for a block of rows after the other, which stays
// in the cache while it is multiplied.
template <typename Product>
void for_each_block(const char* op, const Compressed& weight, const Product& product) {
  const int64_t row_bytes = std::max<int64_t>(weight.in_features * weight.values.element_size(), 1);
  const int64_t rows = weight.rows_of_block(std::max<int64_t>(kBlockBytes / row_bytes, 16));
  const std::vector<int64_t> first = weight.first_values(op, rows);
  Tensor scratch =
      at::empty({std::min(rows, weight.out_features), weight.in_features}, weight.values.options());
  for (int64_t block = 0; block + 1 < static_cast<int64_t>(first.size()); ++block) {
    const int64_t row = block * rows, count = std::min(rows, weight.out_features - row);
    const Tensor dense = scratch.narrow(0, 0, count);
    weight.decompress_rows(row, count, first[block], dense.mutable_data_ptr());
    product(row, dense);
  }
}

// The result [batch, features] of a product with t [..., other features].
Tensor view_like(const Tensor& result, const Tensor& t) {
  std::vector<int64_t> shape = t.sizes().vec();
  shape.back() = result.size(1);
  return result.view(shape);
}

Tensor linear_by_blocks(const Tensor& x, const Compressed& weight, const OptionalTensor& bias) {
  const Tensor inputs = x.reshape({batch_of(x), weight.in_features});
  Tensor y = at::empty({inputs.size(0), weight.out_features}, x.options());
  for_each_block(kLinear, weight, [&](int64_t row, const Tensor& weights) {
    Tensor outputs = y.narrow(1, row, weights.size(0));
    if (bias.has_value()) {
      at::addmm_out(outputs, bias->narrow(0, row, weights.size(0)), inputs, weights.t());
    } else {
      at::mm_out(outputs, inputs, weights.t());
    }
  });
  return view_like(y, x);
}

Tensor input_grad_by_blocks(const Tensor& grad, const Compressed& weight) {
  const Tensor grads = grad.reshape({batch_of(grad), weight.out_features});
  Tensor sum = at::zeros({grads.size(0), weight.in_features}, grad.options());
  for_each_block(kInputGrad, weight, [&](int64_t row, const Tensor& weights) {
    sum.addmm_(grads.narrow(1, row, weights.size(0)), weights);
  });
  return view_like(sum, grad);
}

// Whether packing the decompressed weight and multiplying by what is kept beats a full product.
// Times in those of one multiplication of the full product, measured at 1024 x 1024.
bool packing_pays(const Tensor& values, int64_t weights, int64_t batch) {
  constexpr int64_t kSmallest = 1 << 14;  // weights; below, calls are what takes the time
  constexpr double kMultiply = 1.4, kPack = 40, kScan = 20;
  if (values.scalar_type() != at::kFloat || weights < kSmallest) return false;
  const double kept = values.size(0), all = weights;
  return kept * (kMultiply * batch + kPack) + all * kScan < all * batch;
}

// Whether the gradient's own kernel beats products with decompressed blocks.
bool is_small(const Tensor& values, int64_t in_features, int64_t batch) {
  constexpr int64_t kMostSamples = 32;
  return values.scalar_type() == at::kFloat && in_features >= kGradColumns &&
         batch <= kMostSamples && has_small_input_grad_cpu();
}

Tensor small_input_grad(const Tensor& grad, const Compressed& weight) {
  const std::vector<int64_t> first = weight.first_values(kInputGrad, 1);
  const Tensor grads = grad.reshape({batch_of(grad), weight.out_features}).contiguous();
  Tensor sums = at::empty({grads.size(0), weight.in_features}, grad.options());
  const InputGradArgs args{weight.bits(),
                           weight.values.const_data_ptr<float>(),
                           first.data(),
                           grads.const_data_ptr<float>(),
                           sums.mutable_data_ptr<float>(),
                           weight.out_features,
                           weight.in_features,
                           grads.size(0)};
  parallel_ranges(divide_up(weight.in_features, kGradColumns),
                  weight.out_features * weight.in_features * (args.batch + 4),
                  [&](int64_t begin, int64_t end) { small_input_grad_cpu(args, begin, end); });
  return view_like(sums, grad);
}

Tensor linear_cpu(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                  const OptionalTensor& weight, const OptionalTensor& bias, int64_t out_features,
                  int64_t in_features, const OptionalTensor& packed) {
  check_compressed_linear(kLinear, x, bitmap, values, weight, bias, out_features, in_features);
  if (packed.has_value()) return sparse_linear(x, *packed, bias, out_features);
  const at::ScalarType dtype = multiplied(values, weight).scalar_type();
  const bool cast = x.scalar_type() != dtype;
  const Tensor input = cast ? x.to(dtype) : x;
  Tensor y;
  if (weight.has_value()) {
    y = at::linear(input, *weight, bias).contiguous();
  } else {
    const Compressed compressed(kLinear, bitmap, values, out_features, in_features);
    y = linear_by_blocks(input, compressed, bias);
  }
  recompute_special_rows(
      y, input, [&] { return whole_weight(bitmap, values, weight, out_features, in_features); },
      [&] { return decompress_mask(bitmap, values, out_features, in_features); }, bias);
  return cast ? y.to(x.scalar_type()) : y;
}

Tensor input_grad_cpu(const Tensor& grad, const Tensor& bitmap, const Tensor& values,
                      const OptionalTensor& weight, int64_t out_features, int64_t in_features) {
  check_compressed_input_grad(kInputGrad, grad, bitmap, values, weight, out_features, in_features);
  const auto dense = [&] {
    return whole_weight(bitmap, values, weight, out_features, in_features);
  };
  const auto mask = [&] { return decompress_mask(bitmap, values, out_features, in_features); };
  Tensor product;
  if (weight.has_value() || c10::isReducedFloatingType(values.scalar_type())) {
    product = at::linear(grad, dense().t()).contiguous();  // blocks' sums would be rounded each
  } else if (is_small(values, in_features, batch_of(grad))) {
    const Compressed compressed(kInputGrad, bitmap, values, out_features, in_features);
    product = small_input_grad(grad, compressed);
  } else if (packing_pays(values, out_features * in_features, batch_of(grad))) {
    const Tensor packed = pack_weight(dense(), mask(), Layout::element, /*transposed=*/true);
    return packed_linear(grad.contiguous(), packed, {});
  } else {
    const Compressed compressed(kInputGrad, bitmap, values, out_features, in_features);
    product = input_grad_by_blocks(grad, compressed);
  }
  recompute_special_rows(
      product, grad, [&] { return dense().t(); }, [&] { return mask().t(); }, {});
  return product;
}

}  // namespace

// ---------------------------------------------------------------------- the operators, dispatched

Tensor decompress_weight(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                         int64_t in_features) {
  using Signature = Tensor(const Tensor&, const Tensor&, int64_t, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::decompress_weight");
  return op.call(bitmap, values, out_features, in_features);
}

Tensor compressed_linear(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                         const OptionalTensor& weight, const OptionalTensor& bias,
                         int64_t out_features, int64_t in_features, const OptionalTensor& packed) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                           const OptionalTensor&, int64_t, int64_t, const OptionalTensor&);
  static const auto op = dispatched<Signature>("simmim_ext::compressed_linear");
  return op.call(x, bitmap, values, weight, bias, out_features, in_features, packed);
}

Tensor compressed_linear_input_grad(const Tensor& grad, const Tensor& bitmap, const Tensor& values,
                                    const OptionalTensor& weight, int64_t out_features,
                                    int64_t in_features) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::compressed_linear_input_grad");
  return op.call(grad, bitmap, values, weight, out_features, in_features);
}

}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("compress_weight(Tensor weight, Tensor mask) -> (Tensor bitmap, Tensor values)");
  m.def(
      "decompress_weight(Tensor bitmap, Tensor values, int out_features, int in_features) -> "
      "Tensor");
  m.def(
      "compressed_linear(Tensor x, Tensor bitmap, Tensor values, Tensor? weight, Tensor? bias, int "
      "out_features, int in_features, Tensor? packed=None) -> Tensor");
  m.def(
      "compressed_linear_input_grad(Tensor grad, Tensor bitmap, Tensor values, Tensor? weight, int "
      "out_features, int in_features) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("compress_weight", &simmim::compress_cpu);
  m.impl("decompress_weight", &simmim::decompress_cpu_op);
  m.impl("compressed_linear", &simmim::linear_cpu);
  m.impl("compressed_linear_input_grad", &simmim::input_grad_cpu);
}

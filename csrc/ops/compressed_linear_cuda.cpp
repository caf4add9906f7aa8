// Linear layers on compressed weights, on CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../kernels/compressed_linear.h"
#include "compressed_linear.h"
#include "linear_checks.h"
#include "linear_cuda.h"
#include "sparse_linear.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> compress_on_cuda(const Tensor& weight, const Tensor& mask) {
  check_weight("compress_weight", weight, mask);
  const Tensor kept = mask.contiguous();
  Tensor bitmap = at::empty({bitmap_bytes(kept.numel())}, kept.options().dtype(at::kByte));
  const PackBitsArgs args{bytes_of(kept), bitmap.mutable_data_ptr<uint8_t>(), kept.numel()};
  on_cuda(bitmap, [&](void* stream) { return pack_bits_cuda(args, stream); });
  return {bitmap, at::masked_select(weight, kept)};
}

// A weight that is decompressed by blocks of rows. Where its values begin is counted on the device,
// which nobody waits for.
class Compressed {
 public:
  // rows: of a block, all of them or a multiple of 8, so that it begins with a byte of the bitmap.
  Compressed(const Tensor& bitmap, const Tensor& values, int64_t out_features, int64_t in_features,
             int64_t rows)
      : bitmap_(bitmap.contiguous()),
        values_(values.contiguous()),
        out_features_(out_features),
        in_features_(in_features),
        rows_(rows),
        segments_((rows * in_features + kSegmentWeights - 1) / kSegmentWeights) {
    const Tensor kept = at::zeros({blocks() * segments_}, values.options().dtype(at::kLong));
    for (int64_t block = 0; block < blocks(); ++block) {
      int64_t* counts = kept.mutable_data_ptr<int64_t>() + block * segments_;
      on_cuda(kept, [&](void* stream) {
        return count_segments_cuda(bytes_of(bits(block)), rows_of(block) * in_features_, counts,
                                   stream);
      });
    }
    ends_ = kept.cumsum(0);
    first_ = ends_ - kept;
  }

  int64_t blocks() const { return (out_features_ + rows_ - 1) / rows_; }
  int64_t first_row(int64_t block) const { return block * rows_; }
  int64_t rows_of(int64_t block) const { return std::min(rows_, out_features_ - first_row(block)); }
  Tensor bits(int64_t block) const {
    return bitmap_.narrow(0, first_row(block) * in_features_ / 8,
                          bitmap_bytes(rows_of(block) * in_features_));
  }
  // Waits for the device.
  int64_t kept() const { return ends_.numel() == 0 ? 0 : ends_[-1].item<int64_t>(); }

  // [rows_of(block), in_features], NaN where the bits are not as many as the values.
  Tensor decompressed(int64_t block) const {
    const Tensor dense = at::empty({rows_of(block), in_features_}, values_.options());
    if (dense.numel() == 0) return dense;
    const DecompressSegmentsArgs args{bytes_of(bits(block)),
                                      values_.const_data_ptr(),
                                      values_.numel(),
                                      ends_.const_data_ptr<int64_t>() + ends_.numel() - 1,
                                      first_.const_data_ptr<int64_t>() + block * segments_,
                                      dense.mutable_data_ptr(),
                                      dense.numel(),
                                      static_cast<int64_t>(values_.element_size())};
    on_cuda(dense, [&](void* stream) { return decompress_segments_cuda(args, stream); });
    return dense;
  }

 private:
  Tensor bitmap_, values_;
  int64_t out_features_, in_features_, rows_, segments_;  // segments: of a block
  Tensor first_, ends_;  // [blocks * segments]: how many are kept before each, and up to its end
};

// Waits for the device once, to compare the bits with the values; while a graph is recorded it
// can't be known, and all weights are NaN if they do not fit.
Tensor decompress_on_cuda(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                          int64_t in_features) {
  constexpr char kDecompress[] = "decompress_weight";
  check_compressed(kDecompress, bitmap, values, out_features, in_features);
  const Compressed weight(bitmap, values, out_features, in_features,
                          std::max<int64_t>(out_features, 1));
  if (!is_capturing(values)) check_kept(kDecompress, values, weight.kept());
  return weight.blocks() == 0 ? at::empty({0, in_features}, values.options())
                              : weight.decompressed(0);
}

// Rows that are decompressed together, whose weights the L2 cache holds while they are multiplied.
int64_t rows_of_a_block(const Tensor& values, int64_t out_features, int64_t in_features) {
  constexpr int64_t kBlockBytes = 8 << 20;
  const int64_t row_bytes = std::max<int64_t>(in_features * values.element_size(), 1);
  const int64_t rows = std::max<int64_t>(kBlockBytes / row_bytes / 8 * 8, 8);
  return std::max<int64_t>(std::min(rows, out_features), 1);
}

// Never waits for the device: where the bits are not as many as the values, y is NaN.
Tensor compressed_linear_on_cuda(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                                 const OptionalTensor& weight, const OptionalTensor& bias,
                                 int64_t out_features, int64_t in_features,
                                 const OptionalTensor& packed) {
  check_compressed_linear("compressed_linear", x, bitmap, values, weight, bias, out_features,
                          in_features);
  if (packed.has_value()) return sparse_linear(x, *packed, bias, out_features);
  const Tensor input = x.to(multiplied(values, weight).scalar_type()).contiguous();
  if (weight.has_value()) {
    const bool keeps_all = values.numel() == out_features * in_features;
    const Tensor y = keeps_all
                         ? at::linear(input, *weight, bias)
                         : dense_linear(input, weight->contiguous(), bitmap.contiguous(), bias);
    return y.to(x.scalar_type());
  }
  const Compressed compressed(bitmap, values, out_features, in_features,
                              rows_of_a_block(values, out_features, in_features));
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = out_features;
  Tensor y = at::empty(sizes, values.options());
  for (int64_t block = 0; block < compressed.blocks(); ++block) {
    const auto part = [&](const Tensor& of, int64_t axis) {
      return of.narrow(axis, compressed.first_row(block), compressed.rows_of(block));
    };
    const OptionalTensor added = bias.has_value() ? OptionalTensor(part(*bias, 0)) : std::nullopt;
    part(y, -1).copy_(
        dense_linear(input, compressed.decompressed(block), compressed.bits(block), added));
  }
  return y.to(x.scalar_type());
}

// Without a weight all of it is decompressed, as blocks of rows would each add to all of the
// product. Never waits for the device: where the bits are not as many as the values it is NaN.
Tensor compressed_input_grad_on_cuda(const Tensor& grad, const Tensor& bitmap, const Tensor& values,
                                     const OptionalTensor& weight, int64_t out_features,
                                     int64_t in_features) {
  check_compressed_input_grad("compressed_linear_input_grad", grad, bitmap, values, weight,
                              out_features, in_features);
  Tensor dense;
  if (weight.has_value()) {
    dense = weight->contiguous();
  } else {
    const Compressed compressed(bitmap, values, out_features, in_features,
                                std::max<int64_t>(out_features, 1));
    dense = compressed.blocks() == 0 ? at::empty({0, in_features}, values.options())
                                     : compressed.decompressed(0);
  }
  return dense_linear(grad.contiguous(), dense.t(), bitmap.contiguous(), {});
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("compress_weight", SIMMIM_ON_CUDA(compress_on_cuda));
  m.impl("decompress_weight", SIMMIM_ON_CUDA(decompress_on_cuda));
  m.impl("compressed_linear", SIMMIM_ON_CUDA(compressed_linear_on_cuda));
  m.impl("compressed_linear_input_grad", SIMMIM_ON_CUDA(compressed_input_grad_on_cuda));
}

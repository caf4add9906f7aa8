// Linear layers on compressed weights, on CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/masked_select.h>
#include <torch/library.h>

#include "../kernels/compressed_linear.h"
#include "linear_checks.h"
#include "linear_cuda.h"

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

// Waits for the device once, to compare the bits with the values; while a graph is recorded it
// can't be known, and values that are missing are 0.
Tensor decompress(const char* op, const Tensor& bitmap, const Tensor& values, int64_t out_features,
                  int64_t in_features) {
  const Tensor bits = bitmap.contiguous(), given = values.contiguous();
  Tensor dense = at::empty({out_features, in_features}, values.options());
  const int64_t weights = dense.numel();
  const int64_t segments = (weights + kSegmentWeights - 1) / kSegmentWeights;
  Tensor kept = at::empty({segments}, values.options().dtype(at::kLong));
  on_cuda(dense, [&](void* stream) {
    return count_segments_cuda(bytes_of(bits), weights, kept.mutable_data_ptr<int64_t>(), stream);
  });
  const Tensor ends = kept.cumsum(0), first = ends - kept;
  if (!is_capturing(values)) {
    check_kept(op, values, segments == 0 ? 0 : ends[segments - 1].item<int64_t>());
  }
  const DecompressSegmentsArgs args{bytes_of(bits),
                                    given.const_data_ptr(),
                                    given.numel(),
                                    first.const_data_ptr<int64_t>(),
                                    dense.mutable_data_ptr(),
                                    weights,
                                    static_cast<int64_t>(values.element_size())};
  on_cuda(dense, [&](void* stream) { return decompress_segments_cuda(args, stream); });
  return dense;
}

Tensor decompress_on_cuda(const Tensor& bitmap, const Tensor& values, int64_t out_features,
                          int64_t in_features) {
  check_compressed("decompress_weight", bitmap, values, out_features, in_features);
  return decompress("decompress_weight", bitmap, values, out_features, in_features);
}

Tensor compressed_linear_on_cuda(const Tensor& x, const Tensor& bitmap, const Tensor& values,
                                 const OptionalTensor& weight, const OptionalTensor& bias,
                                 int64_t out_features, int64_t in_features) {
  constexpr char kLinear[] = "compressed_linear";
  check_compressed_linear(kLinear, x, bitmap, values, weight, bias, out_features, in_features);
  const Tensor dense = weight.has_value()
                           ? weight->contiguous()
                           : decompress(kLinear, bitmap, values, out_features, in_features);
  return dense_linear(x.to(values.scalar_type()), dense, bitmap.contiguous(), bias)
      .to(x.scalar_type());
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("compress_weight", SIMMIM_ON_CUDA(compress_on_cuda));
  m.impl("decompress_weight", SIMMIM_ON_CUDA(decompress_on_cuda));
  m.impl("compressed_linear", SIMMIM_ON_CUDA(compressed_linear_on_cuda));
}

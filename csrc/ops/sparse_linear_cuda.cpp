// Linear layers on packed weights, on CUDA: one layout, "tile".
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../kernels/tile_linear.h"
#include "linear_checks.h"
#include "linear_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr char kPack[] = "pack_sparse_weight";
constexpr char kLinear[] = "sparse_linear";

// Waits for the device once, for the size. What it returns tells its type by its dtype, and
// in_features by its first axis: asking the device in each call would wait for it.
Tensor pack_on_cuda(const Tensor& weight, const Tensor& mask, c10::string_view layout) {
  check_weight(kPack, weight, mask);
  TORCH_CHECK_VALUE(layout == "tile", kPack, ": layout must be 'tile' on CUDA, got '", layout, "'");
  TORCH_CHECK_VALUE(weight.numel() > 0, kPack,
                    ": weight must have at least one element on CUDA, got ", weight.sizes());
  const Tensor values =
      weight.detach().to(is_double(weight) ? at::kFloat : weight.scalar_type()).contiguous();
  const Tensor kept = mask.contiguous();
  const PackedTiles shape{weight.size(0), weight.size(1)};
  const PackTilesArgs args{values.const_data_ptr(), bytes_of(kept), shape,
                           static_cast<int64_t>(values.element_size())};
  Tensor units = at::empty({shape.tiles()}, values.options().dtype(at::kLong));
  on_cuda(values, [&](void* stream) {
    return count_tile_units_cuda(args, units.mutable_data_ptr<int64_t>(), stream);
  });
  const Tensor ends = units.cumsum(0);
  const int64_t bytes =
      (shape.first_unit() + ends[shape.tiles() - 1].item<int64_t>()) * kPackedUnit;
  const int64_t row_bytes = shape.in_features * args.item_size;
  Tensor packed =
      at::zeros({shape.in_features, (bytes + row_bytes - 1) / row_bytes}, values.options());
  on_cuda(packed, [&](void* stream) {
    return pack_tiles_cuda(args, ends.const_data_ptr<int64_t>(), packed.mutable_data_ptr(), stream);
  });
  return packed;
}

// x [..., in_features] -> [batch, columns]: whole tiles, aligned, of the packed weight's type.
Tensor whole_tiles(const Tensor& x, const Tensor& packed, int64_t columns) {
  const int64_t in_features = x.size(-1);
  Tensor rows = x.reshape({x.numel() / in_features, in_features}).to(packed.scalar_type());
  if (columns > in_features) return at::constant_pad_nd(rows, {0, columns - in_features});
  rows = rows.contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % kPackedUnit == 0;
  return aligned ? rows : rows.clone();
}

template <typename Stored>
void run(const TileLinearArgs<Stored>& args, const Tensor& packed) {
  Tensor scratch;
  if (const int64_t floats = tile_linear_scratch(args); floats > 0) {
    scratch = at::empty({floats}, packed.options().dtype(at::kFloat));
  }
  float* sums = scratch.defined() ? scratch.mutable_data_ptr<float>() : nullptr;
  on_cuda(packed, [&](void* stream) { return tile_linear_cuda(args, sums, stream); });
}

Tensor sparse_linear_on_cuda(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                             int64_t out_features) {
  const auto dtype = packed.scalar_type();
  TORCH_CHECK_VALUE((dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16) &&
                        packed.dim() == 2 && packed.is_contiguous(),
                    kLinear, ": packed must be what pack_sparse_weight returned on CUDA, got ",
                    dtype_name(packed), " ", packed.sizes());
  check_sparse_linear(kLinear, x, packed.size(0), bias, out_features);
  TORCH_CHECK_VALUE(x.device() == packed.device(), kLinear, ": x must be on packed's device ",
                    packed.device(), ", got ", x.device());
  const PackedTiles shape{out_features, packed.size(0)};
  TORCH_CHECK_VALUE(out_features >= 1 && packed.numel() * packed.element_size() >=
                                             (shape.first_unit() + shape.tiles()) * kPackedUnit,
                    kLinear, ": out_features must be as packed, got ", out_features);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = out_features;
  Tensor y = at::empty(sizes, packed.options());
  const Tensor rows = whole_tiles(x, packed, shape.column_tiles() * kPackedColumns);
  const OptionalTensor added =
      bias.has_value() ? OptionalTensor(bias->to(dtype).contiguous()) : std::nullopt;
  with_stored(packed, [&](auto stored) {
    using Stored = decltype(stored);
    run<Stored>({packed.const_data_ptr(), values_of<Stored>(rows), values_of<Stored>(added),
                 static_cast<Stored*>(y.mutable_data_ptr()), rows.size(0), shape},
                packed);
  });
  return y.to(x.scalar_type());
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("pack_sparse_weight", SIMMIM_ON_CUDA(pack_on_cuda));
  m.impl("sparse_linear", SIMMIM_ON_CUDA(sparse_linear_on_cuda));
}

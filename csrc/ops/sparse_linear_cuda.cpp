// Linear layers on packed weights, on CUDA: the layouts "row", "tile" and "list".
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../kernels/row_linear.h"
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

static_assert(kPackedUnit == kRowUnit);

// Each layout's parts: `count` of them take units of kPackedUnit bytes from first_unit on.
template <typename Count, typename Pack>
Tensor pack_parts(const Tensor& values, int64_t count, int64_t first_unit, const Count& count_units,
                  const Pack& pack) {
  Tensor units = at::empty({count}, values.options().dtype(at::kLong));
  on_cuda(values,
          [&](void* stream) { return count_units(units.mutable_data_ptr<int64_t>(), stream); });
  const Tensor ends = units.cumsum(0);
  const int64_t bytes = (first_unit + ends[count - 1].item<int64_t>()) * kPackedUnit;
  const int64_t in_features = values.size(1);
  const int64_t row_bytes = in_features * static_cast<int64_t>(values.element_size());
  Tensor packed = at::zeros({in_features, (bytes + row_bytes - 1) / row_bytes}, values.options());
  on_cuda(packed, [&](void* stream) {
    return pack(ends.const_data_ptr<int64_t>(), packed.mutable_data_ptr(), stream);
  });
  return packed;
}

// Waits for the device once, for the size. What it returns tells its type by its dtype, in_features
// by its first axis, and its layout by its axes, of which "row" has a third of length 1 and "list"
// a fourth as well: asking the device in each call would wait for it.
constexpr int64_t kTileAxes = 2, kRowAxes = 3, kListAxes = 4;

Tensor pack_on_cuda(const Tensor& weight, const Tensor& mask, c10::string_view layout) {
  check_weight(kPack, weight, mask);
  TORCH_CHECK_VALUE(layout == "row" || layout == "tile" || layout == "list", kPack,
                    ": layout must be 'row', 'tile' or 'list' on CUDA, got '", layout, "'");
  TORCH_CHECK_VALUE(weight.numel() > 0, kPack,
                    ": weight must have at least one element on CUDA, got ", weight.sizes());
  const Tensor values =
      weight.detach().to(is_double(weight) ? at::kFloat : weight.scalar_type()).contiguous();
  const Tensor kept = mask.contiguous();
  const int64_t item_size = static_cast<int64_t>(values.element_size());
  const bool is_list = layout == "list";
  TORCH_CHECK_VALUE(!is_list || item_size == 2, kPack,
                    ": weight must be float16 or bfloat16 for layout 'list', got ",
                    dtype_name(weight), "; use layout 'tile'");
  if (layout == "row") {
    const PackedRows shape{weight.size(0), weight.size(1)};
    const PackRowsArgs args{values.const_data_ptr(), bytes_of(kept), shape, item_size};
    return pack_parts(
               values, shape.lists(), shape.first_unit(),
               [&](int64_t* units, void* stream) {
                 return count_row_units_cuda(args, units, stream);
               },
               [&](const int64_t* ends, void* packed, void* stream) {
                 return pack_rows_cuda(args, ends, packed, stream);
               })
        .unsqueeze(2);
  }
  const PackedTiles shape{weight.size(0), weight.size(1)};
  const PackTilesArgs args{values.const_data_ptr(), bytes_of(kept), shape, item_size,
                           is_list ? TileForm::list : TileForm::bits};
  const Tensor packed = pack_parts(
      values, shape.tiles(), shape.first_unit(),
      [&](int64_t* units, void* stream) { return count_tile_units_cuda(args, units, stream); },
      [&](const int64_t* ends, void* packed, void* stream) {
        return pack_tiles_cuda(args, ends, packed, stream);
      });
  return is_list ? packed.unsqueeze(2).unsqueeze(3) : packed;
}

// What kernels read by vectors: a view may begin anywhere.
Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % kPackedUnit == 0 ? t : t.clone();
}

// x [..., in_features] -> [batch, columns]: whole tiles, aligned, of the packed weight's type.
Tensor whole_tiles(const Tensor& x, const Tensor& packed, int64_t columns) {
  const int64_t in_features = x.size(-1);
  const Tensor rows = x.reshape({x.numel() / in_features, in_features}).to(packed.scalar_type());
  if (columns > in_features) return at::constant_pad_nd(rows, {0, columns - in_features});
  return aligned(rows.contiguous());
}

Tensor scratch_of(const Tensor& like, int64_t floats) {
  return at::empty({floats}, like.options().dtype(at::kFloat));
}

template <typename Stored>
void run(const TileLinearArgs<Stored>& args, const Tensor& packed) {
  const Tensor sums = scratch_of(packed, tile_linear_scratch(args));
  on_cuda(packed, [&](void* stream) {
    return tile_linear_cuda(args, sums.mutable_data_ptr<float>(), stream);
  });
}
template <typename Stored>
void run(const RowLinearArgs<Stored>& args, const Tensor& packed) {
  const Tensor sums = scratch_of(packed, row_linear_scratch(args));
  on_cuda(packed, [&](void* stream) {
    return row_linear_cuda(args, sums.mutable_data_ptr<float>(), stream);
  });
}

Tensor sparse_linear_on_cuda(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                             int64_t out_features) {
  const auto dtype = packed.scalar_type();
  const int64_t axes = packed.dim();
  TORCH_CHECK_VALUE((dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16) &&
                        axes >= kTileAxes && axes <= kListAxes &&
                        (axes < kRowAxes || packed.size(2) == 1) &&
                        (axes < kListAxes || (packed.size(3) == 1 && dtype != at::kFloat)) &&
                        packed.is_contiguous(),
                    kLinear, ": packed must be what pack_sparse_weight returned on CUDA, got ",
                    dtype_name(packed), " ", packed.sizes());
  check_sparse_linear(kLinear, x, packed.size(0), bias, out_features);
  TORCH_CHECK_VALUE(x.device() == packed.device(), kLinear, ": x must be on packed's device ",
                    packed.device(), ", got ", x.device());
  const bool by_rows = axes == kRowAxes;
  const PackedTiles tiles{out_features, packed.size(0)};
  const PackedRows lists{out_features, packed.size(0)};
  const int64_t least_units = by_rows ? lists.first_unit() : tiles.first_unit() + tiles.tiles();
  TORCH_CHECK_VALUE(
      out_features >= 1 && packed.numel() * packed.element_size() >= least_units * kPackedUnit,
      kLinear, ": out_features must be as packed, got ", out_features);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = out_features;
  Tensor y = at::empty(sizes, packed.options());
  const Tensor rows = whole_tiles(x, packed, tiles.column_tiles() * kPackedColumns);
  const Tensor units = aligned(packed);
  const OptionalTensor added =
      bias.has_value() ? OptionalTensor(bias->to(dtype).contiguous()) : std::nullopt;
  with_stored(packed, [&](auto stored) {
    using Stored = decltype(stored);
    const auto* values = values_of<Stored>(rows);
    const auto* bias_values = values_of<Stored>(added);
    auto* outputs = static_cast<Stored*>(y.mutable_data_ptr());
    if (by_rows) {
      run<Stored>(RowLinearArgs<Stored>{units.const_data_ptr(), values, bias_values, outputs,
                                        rows.size(0), rows.size(1), lists},
                  packed);
    } else {
      run<Stored>(
          TileLinearArgs<Stored>{units.const_data_ptr(), values, bias_values, outputs, rows.size(0),
                                 tiles, axes == kListAxes ? TileForm::list : TileForm::bits},
          packed);
    }
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

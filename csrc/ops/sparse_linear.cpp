// Linear layers on weights that are packed once for one kernel.
#include "sparse_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "../kernels/half.h"
#include "backend.h"
#include "linear_checks.h"
#include "parallel.h"
#include "transforms.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kPackWork = 8;  // operations in whose time an element of x is packed

constexpr char kPack[] = "pack_sparse_weight";
constexpr char kLinear[] = "sparse_linear";

Layout parse_layout(c10::string_view name) {
  if (name == "element") return Layout::element;
  if (name == "gather") return Layout::gather;
  if (name == "block") return Layout::block;
  if (name == "window") return Layout::window;
  if (name == "planes") return Layout::planes;
  if (name == "tile") return Layout::tile;
  if (name == "pair") return Layout::pair;
  TORCH_CHECK_VALUE(
      false, kPack,
      ": layout must be 'element', 'gather', 'block', 'window', 'planes', 'tile' or 'pair', got '",
      name, "'");
}

Tensor pack_cpu(const Tensor& weight, const Tensor& mask, c10::string_view layout_name) {
  check_weight(kPack, weight, mask);
  const Tensor keep = mask.contiguous();
  const Layout layout = parse_layout(layout_name);
  TORCH_CHECK_VALUE(layout != Layout::block ||
                        is_block_mask_cpu(static_cast<const uint8_t*>(keep.const_data_ptr()),
                                          weight.size(0), weight.size(1)),
                    kPack, ": mask must keep or mask whole columns of ", kBlockRows,
                    " rows for layout 'block'; use layout 'element'");
  const bool is_bfloat16 = weight.scalar_type() == at::kBFloat16 && layout == Layout::planes;
  return pack_weight(weight.detach().to(at::kFloat).contiguous(), keep, layout,
                     /*transposed=*/false, is_bfloat16);
}

PackedHeader header_of(const Tensor& packed) {
  PackedHeader header;
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  return header;
}

PackedHeader read_header(const Tensor& packed) {
  const bool readable = packed.scalar_type() == at::kByte && packed.dim() == 1 &&
                        packed.is_contiguous() &&
                        packed.size(0) >= static_cast<int64_t>(sizeof(PackedHeader));
  const PackedHeader header = readable ? header_of(packed) : PackedHeader{};
  TORCH_CHECK_VALUE(
      readable && header.magic == PackedHeader::kMagic && header.bytes == packed.size(0), kLinear,
      ": packed must be what pack_sparse_weight returned, got ", dtype_name(packed), " ",
      packed.sizes());
  return header;
}

// Calls through the dispatcher cost a small layer's time: none where there is nothing to do, and
// none for so few elements that a plain loop converts them sooner.
constexpr int64_t kFew = 1 << 13;

Tensor as_float(const Tensor& t) {
  if (t.scalar_type() == at::kFloat && t.is_contiguous()) return t;
  if (t.scalar_type() == at::kBFloat16 && t.is_contiguous() && t.numel() <= kFew) {
    Tensor floats = at::empty(t.sizes(), t.options().dtype(at::kFloat));
    const auto* from = static_cast<const BFloat16*>(t.const_data_ptr());
    std::copy_n(from, t.numel(), floats.mutable_data_ptr<float>());
    return floats;
  }
  return t.to(at::kFloat).contiguous();
}

// Of a float t that is contiguous.
Tensor as_dtype(const Tensor& t, at::ScalarType dtype) {
  if (dtype == at::kBFloat16 && t.numel() <= kFew) {
    Tensor rounded = at::empty(t.sizes(), t.options().dtype(dtype));
    const auto* from = t.const_data_ptr<float>();
    std::transform(from, from + t.numel(), static_cast<BFloat16*>(rounded.mutable_data_ptr()),
                   to_bfloat16);
    return rounded;
  }
  return t.to(dtype);
}

// Packs x into tiles of args.lanes samples by so many columns, then runs.
template <typename Run>
void run_on_tiles(SparseLinearArgs args, const Tensor& x, int64_t in_features, int64_t tile_columns,
                  const Run& run) {
  const int64_t tiles = divide_up(args.batch, args.lanes) * divide_up(in_features, tile_columns);
  const Tensor packed =
      at::empty({tiles * packed_tile_items(tile_columns, args.lanes)}, x.options());
  const PackInputArgs pack{
      args.x, packed.mutable_data_ptr<float>(), args.batch, in_features, args.lanes, tile_columns};
  parallel_ranges(tiles, kPackWork * x.numel(),
                  [&](int64_t begin, int64_t end) { pack_input_cpu(pack, begin, end); });
  args.x = pack.packed;
  run(args);
}

void run_element(SparseLinearArgs args, const PackedHeader& header, const Tensor& x, int64_t work) {
  args.lanes = element_lanes_cpu(args.batch);
  run_on_tiles(args, x, header.in_features, kTileColumns, [&](const SparseLinearArgs& args) {
    const int64_t tasks =
        divide_up(args.batch, args.lanes) * divide_up(header.out_features, kTileRows);
    parallel_ranges(tasks, work,
                    [&](int64_t begin, int64_t end) { element_linear_cpu(args, begin, end); });
  });
}

void run_block(SparseLinearArgs args, const PackedHeader& header, const Tensor& x, int64_t work) {
  args.lanes = block_lanes_cpu(args.batch);
  const auto run = [&](const SparseLinearArgs& args) {
    parallel_ranges(divide_up(header.out_features, kBlockRows), work,
                    [&](int64_t begin, int64_t end) { block_linear_cpu(args, begin, end); });
  };
  if (args.lanes == 1) return run(args);
  run_on_tiles(args, x, header.in_features, std::max<int64_t>(header.in_features, 1), run);
}

void run_window(SparseLinearArgs args, const PackedHeader& header, const Tensor& x, int64_t work) {
  // Rows of whole vectors, for the kernel gathers from two of them at a time.
  const int64_t columns = window_columns(header.in_features);
  Tensor padded;
  if (columns != header.in_features) {
    padded = at::zeros({args.batch, columns}, x.options());
    float* rows = padded.mutable_data_ptr<float>();
    for (int64_t b = 0; b < args.batch; ++b) {
      std::copy_n(args.x + b * header.in_features, header.in_features, rows + b * columns);
    }
    args.x = rows;
  }
  parallel_ranges(divide_up(header.out_features, kWindowRows), work,
                  [&](int64_t begin, int64_t end) { window_linear_cpu(args, begin, end); });
}

// x and y float or bfloat16.
struct HalfRun {
  Tensor x;  // packed
  int64_t tasks, work;
  void (*linear)(const TileLinearArgs& args, int64_t begin, int64_t end);
};

HalfRun pack_tiles(PackTilesArgs args, const Tensor& x, const PackedHeader& header) {
  const int64_t batch_tiles = divide_up(args.batch, kTileSamples);
  const int64_t depth = divide_up(args.in_features, kTileInputs);
  const Tensor tiles =
      at::empty({batch_tiles, depth, kTileSamples, kTileInputs}, x.options().dtype(at::kBFloat16));
  args.tiles = static_cast<uint16_t*>(tiles.mutable_data_ptr());
  parallel_ranges(batch_tiles, kPackWork * x.numel(),
                  [&](int64_t begin, int64_t end) { pack_tiles_cpu(args, begin, end); });
  // A vector of weights is expanded in about the time in which two tiles of x take it.
  const int64_t vectors = header.out_features * depth;
  return {tiles, divide_up(args.batch, kTileBatch) * divide_up(header.out_features, kTileOutputs),
          vectors * (batch_tiles + 2) * 8, tile_linear_cpu};
}

HalfRun pack_pairs(PackTilesArgs args, const Tensor& x, const PackedHeader& header) {
  const int64_t batch_tiles = divide_up(args.batch, kPairLanes);
  const int64_t tiles = batch_tiles * divide_up(args.in_features, kPairColumns);
  const Tensor packed = at::empty({tiles * packed_tile_items(kPairColumns, kPairLanes)},
                                  x.options().dtype(at::kBFloat16));
  args.tiles = static_cast<uint16_t*>(packed.mutable_data_ptr());
  parallel_ranges(tiles, kPackWork * x.numel(),
                  [&](int64_t begin, int64_t end) { pack_pairs_cpu(args, begin, end); });
  constexpr int64_t kPairBytes = 6;
  return {packed, batch_tiles * divide_up(header.out_features, kTileRows),
          header.bytes / kPairBytes * args.batch, pair_linear_cpu};
}

Tensor run_half(const Tensor& x, const Tensor& packed, const OptionalTensor& bias) {
  const PackedHeader header = header_of(packed);
  const bool is_bfloat16 = x.scalar_type() == at::kBFloat16;
  const PackTilesArgs args{x.const_data_ptr(), is_bfloat16, nullptr, batch_of(x),
                           header.in_features};
  const auto pack = header.layout == Layout::pair ? pack_pairs : pack_tiles;
  const HalfRun run = pack(args, x, header);

  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = header.out_features;
  Tensor y = at::empty(shape, x.options());
  const TileLinearArgs linear{packed.const_data_ptr(),
                              static_cast<const uint16_t*>(run.x.const_data_ptr()),
                              bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                              y.mutable_data_ptr(),
                              is_bfloat16,
                              args.batch};
  parallel_ranges(run.tasks, run.work,
                  [&](int64_t begin, int64_t end) { run.linear(linear, begin, end); });
  return y;
}

bool is_half(Layout layout) { return layout == Layout::tile || layout == Layout::pair; }

Tensor linear_cpu(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                  int64_t out_features) {
  const PackedHeader header = read_header(packed);
  TORCH_CHECK_VALUE(out_features == header.out_features, kLinear, ": out_features must be ",
                    header.out_features, ", as packed, got ", out_features);
  check_sparse_linear(kLinear, x, header.in_features, bias, out_features);
  const OptionalTensor float_bias =
      bias.has_value() ? OptionalTensor(as_float(*bias)) : std::nullopt;
  const bool takes_half = is_half(header.layout) && x.scalar_type() == at::kBFloat16;
  const Tensor y = packed_linear(takes_half ? x.contiguous() : as_float(x), packed, float_bias);
  return y.scalar_type() == x.scalar_type() ? y : as_dtype(y, x.scalar_type());
}

// A packed weight serves inference alone.
Tensor linear_autograd(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                       int64_t out_features) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(x) && !has_tangent(bias) &&
          (!at::GradMode::is_enabled() ||
           !(x.requires_grad() || (bias.has_value() && bias->requires_grad()))),
      kLinear, ": has no gradient; use compressed_linear, or torch.no_grad()");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return sparse_linear(x, packed, bias, out_features);
}

// The packed weight keeps its precision; the result has autocast's, as linear's does.
template <c10::DeviceType device>
Tensor linear_autocast(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                       int64_t out_features) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return sparse_linear(x, packed, bias, out_features).to(at::autocast::get_autocast_dtype(device));
}

}  // namespace

Tensor sparse_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                     int64_t out_features) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::sparse_linear");
  return op.call(x, packed, bias, out_features);
}

at::Tensor pack_weight(const Tensor& weight, const Tensor& mask, Layout layout, bool transposed,
                       bool is_bfloat16) {
  const PackArgs args{weight.const_data_ptr<float>(),
                      static_cast<const uint8_t*>(mask.const_data_ptr()),
                      weight.size(transposed ? 1 : 0),
                      weight.size(transposed ? 0 : 1),
                      layout,
                      transposed,
                      is_bfloat16};
  Tensor packed;
  pack_sparse_cpu(args, [&](int64_t bytes) {
    packed = at::empty({bytes}, mask.options().dtype(at::kByte));
    return packed.mutable_data_ptr();
  });
  return packed;
}

at::Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias) {
  const PackedHeader header = header_of(packed);
  if (is_half(header.layout)) return run_half(x, packed, bias);
  const int64_t out_features = header.out_features;
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_features;
  Tensor y = at::empty(shape, x.options());
  const SparseLinearArgs args{packed.const_data_ptr(),
                              x.const_data_ptr<float>(),
                              bias.has_value() ? bias->const_data_ptr<float>() : nullptr,
                              y.mutable_data_ptr<float>(),
                              batch_of(x),
                              0};
  constexpr int64_t kValueBytes = 6;  // a float and its 16-bit column, about
  const int64_t work = packed.numel() * packed.element_size() / kValueBytes * args.batch;
  switch (header.layout) {
    case Layout::element:
      run_element(args, header, x, work);
      break;
    case Layout::gather:
      parallel_ranges(out_features, work,
                      [&](int64_t begin, int64_t end) { gather_linear_cpu(args, begin, end); });
      break;
    case Layout::block:
      run_block(args, header, x, work);
      break;
    case Layout::window:
      run_window(args, header, x, work);
      break;
    case Layout::planes:
      parallel_ranges(divide_up(out_features, kPlanesRows), work,
                      [&](int64_t begin, int64_t end) { planes_linear_cpu(args, begin, end); });
      break;
    case Layout::tile:
    case Layout::pair:
      break;  // left above
  }
  return y;
}

}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("pack_sparse_weight(Tensor weight, Tensor mask, str layout) -> Tensor");
  m.def("sparse_linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("pack_sparse_weight", &simmim::pack_cpu);
  m.impl("sparse_linear", &simmim::linear_cpu);
}
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) { m.impl("sparse_linear", &simmim::linear_autograd); }
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCPU, m) {
  m.impl("sparse_linear", &simmim::linear_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCUDA, m) {
  m.impl("sparse_linear", &simmim::linear_autocast<c10::DeviceType::CUDA>);
}

// Runs the kernels of packed weights on the CPU: packs x for them, and shares the work out.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "linear_checks.h"
#include "parallel.h"
#include "sparse_linear.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kPackWork = 8;  // operations in whose time an element of x is packed

// Calls run(begin, end, first, past) for all of a batch's samples [begin, end), in whole tiles of
// `lanes`, by all of the row blocks [first, past). Threads take as many tiles each, as many at a
// time as leave room in the L2 cache, and share each tile that is left by its row blocks. What a
// thread packs it reads alone: lines of another core's cache may come from another die.
// bytes: of a sample's packed x; work: operations for a sample.
template <typename Run>
void for_each_part(int64_t batch, int64_t lanes, int64_t row_blocks, int64_t bytes, int64_t work,
                   const Run& run) {
  constexpr int64_t kChunkBytes = 1 << 18;
  const int64_t tiles = divide_up(batch, lanes), tile_bytes = std::max<int64_t>(1, bytes * lanes);
  const int64_t scratch = std::max(kChunkBytes, tile_bytes);
  const int64_t threads = threads_for(work * batch / kThreadWork, scratch);
  const int64_t own = tiles / threads * threads;
  const int64_t chunks = divide_up(divide_up(own, scratch / tile_bytes), threads) * threads;
  const auto run_own = [&](int64_t chunk) {
    const int64_t begin = own * chunk / chunks * lanes;
    run(begin, std::min(own * (chunk + 1) / chunks * lanes, batch), 0, row_blocks);
  };
  parallel_tasks(chunks, run_own, scratch);
  const int64_t left = (tiles - own) * row_blocks;
  if (left == 0) return;
  const auto run_left = [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin / row_blocks; tile * row_blocks < end; ++tile) {
      const int64_t sample = (own + tile) * lanes, block = tile * row_blocks;
      run(sample, std::min(sample + lanes, batch), std::max<int64_t>(begin - block, 0),
          std::min(end - block, row_blocks));
    }
  };
  parallel_ranges(left, work * (batch - own * lanes), run_left, tile_bytes);
}

// Packs x into tiles of args.lanes samples by so many columns, and calls run(args, tiles, first,
// past) on them, part by part. sample_work: operations for each sample.
template <typename Run>
void run_on_tiles(const SparseLinearArgs& args, const PackedHeader& header, const Tensor& x,
                  int64_t tile_columns, int64_t tile_rows, int64_t sample_work, const Run& run) {
  const int64_t column_tiles = divide_up(header.in_features, tile_columns);
  const int64_t tile_items = packed_tile_items(tile_columns, args.lanes);
  const auto pack_and_run = [&](int64_t begin, int64_t end, int64_t first, int64_t past) {
    const int64_t tiles = divide_up(end - begin, args.lanes);
    const Tensor packed = at::empty({tiles * column_tiles * tile_items}, x.options());
    const PackInputArgs pack{args.x + begin * header.in_features,
                             packed.mutable_data_ptr<float>(),
                             end - begin,
                             header.in_features,
                             args.lanes,
                             tile_columns};
    pack_input_cpu(pack, 0, tiles * column_tiles);
    SparseLinearArgs part = args;
    part.x = pack.packed;
    part.y += begin * header.out_features;
    part.batch = end - begin;
    run(part, tiles, first, past);
  };
  for_each_part(args.batch, args.lanes, divide_up(header.out_features, tile_rows),
                header.in_features * static_cast<int64_t>(sizeof(float)), sample_work,
                pack_and_run);
}

void run_element(SparseLinearArgs args, const PackedHeader& header, const Tensor& x,
                 int64_t sample_work) {
  args.lanes = element_lanes_cpu(args.batch);
  const int64_t row_blocks = divide_up(header.out_features, kTileRows);
  run_on_tiles(args, header, x, kTileColumns, kTileRows, sample_work,
               [&](const SparseLinearArgs& args, int64_t tiles, int64_t first, int64_t past) {
                 element_linear_cpu(args, first, (tiles - 1) * row_blocks + past);
               });
}

void run_block(SparseLinearArgs args, const PackedHeader& header, const Tensor& x,
               int64_t sample_work) {
  args.lanes = block_lanes_cpu(args.batch);
  if (args.lanes == 1) {
    return parallel_ranges(divide_up(header.out_features, kBlockRows), sample_work,
                           [&](int64_t begin, int64_t end) { block_linear_cpu(args, begin, end); });
  }
  run_on_tiles(args, header, x, std::max<int64_t>(header.in_features, 1), kBlockRows, sample_work,
               [&](const SparseLinearArgs& args, int64_t, int64_t first, int64_t past) {
                 block_linear_cpu(args, first, past);
               });
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

// x and y float or bfloat16, in run_tile and run_pair.
void run_tile(TileLinearArgs args, const PackedHeader& header, const Tensor& x) {
  const int64_t batch_tiles = divide_up(args.batch, kTileSamples);
  const int64_t depth = divide_up(header.in_features, kTileInputs);
  const Tensor tiles =
      at::empty({batch_tiles, depth, kTileSamples, kTileInputs}, x.options().dtype(at::kBFloat16));
  const PackTilesArgs pack{x.const_data_ptr(), args.is_bfloat16,
                           static_cast<uint16_t*>(tiles.mutable_data_ptr()), args.batch,
                           header.in_features};
  parallel_ranges(batch_tiles, kPackWork * x.numel(),
                  [&](int64_t begin, int64_t end) { pack_tiles_cpu(pack, begin, end); });
  args.x = pack.tiles;
  // A vector of weights is expanded in about the time in which two tiles of x take it.
  const int64_t vectors = header.out_features * depth;
  parallel_ranges(divide_up(args.batch, kTileBatch) * divide_up(header.out_features, kTileOutputs),
                  vectors * (batch_tiles + 2) * 8,
                  [&](int64_t begin, int64_t end) { tile_linear_cpu(args, begin, end); });
}

void run_pair(const TileLinearArgs& args, const PackedHeader& header, const Tensor& x) {
  constexpr int64_t kTileItems = packed_tile_items(kPairColumns, kPairLanes);
  constexpr int64_t kPairBytes = 6;  // of two weights and their columns
  const int64_t column_tiles = divide_up(header.in_features, kPairColumns);
  const int64_t row_blocks = divide_up(header.out_features, kTileRows);
  const auto* inputs = static_cast<const char*>(x.const_data_ptr());
  const auto pack_and_run = [&](int64_t begin, int64_t end, int64_t first, int64_t past) {
    const int64_t tiles = divide_up(end - begin, kPairLanes);
    const Tensor packed =
        at::empty({tiles * column_tiles * kTileItems}, x.options().dtype(at::kBFloat16));
    const PackTilesArgs pack{inputs + begin * header.in_features * x.element_size(),
                             args.is_bfloat16, static_cast<uint16_t*>(packed.mutable_data_ptr()),
                             end - begin, header.in_features};
    pack_pairs_cpu(pack, 0, tiles * column_tiles);
    TileLinearArgs part = args;
    part.x = pack.tiles;
    part.y = static_cast<char*>(args.y) + begin * header.out_features * x.element_size();
    part.batch = end - begin;
    pair_linear_cpu(part, first, (tiles - 1) * row_blocks + past);
  };
  for_each_part(args.batch, kPairLanes, row_blocks,
                header.in_features * static_cast<int64_t>(sizeof(uint16_t)),
                header.bytes / kPairBytes, pack_and_run);
}

}  // namespace

PackedHeader header_of(const Tensor& packed) {
  PackedHeader header;
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  return header;
}

at::Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias) {
  const PackedHeader header = header_of(packed);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = header.out_features;
  Tensor y = at::empty(shape, x.options());
  const float* float_bias = bias.has_value() ? bias->const_data_ptr<float>() : nullptr;
  const int64_t batch = batch_of(x);
  if (is_half(header.layout)) {
    const TileLinearArgs args{
        packed.const_data_ptr(),          nullptr, float_bias, y.mutable_data_ptr(),
        x.scalar_type() == at::kBFloat16, batch};
    header.layout == Layout::pair ? run_pair(args, header, x) : run_tile(args, header, x);
    return y;
  }
  const SparseLinearArgs args{packed.const_data_ptr(),
                              x.const_data_ptr<float>(),
                              float_bias,
                              y.mutable_data_ptr<float>(),
                              batch,
                              0};
  constexpr int64_t kValueBytes = 6;  // a float and its 16-bit column, about
  const int64_t sample_work = header.bytes / kValueBytes;
  const int64_t work = sample_work * batch;
  switch (header.layout) {
    case Layout::element:
      run_element(args, header, x, sample_work);
      break;
    case Layout::gather:
      parallel_ranges(header.out_features, work,
                      [&](int64_t begin, int64_t end) { gather_linear_cpu(args, begin, end); });
      break;
    case Layout::block:
      run_block(args, header, x, sample_work);
      break;
    case Layout::window:
      run_window(args, header, x, work);
      break;
    case Layout::planes:
      parallel_ranges(divide_up(header.out_features, kPlanesRows), work,
                      [&](int64_t begin, int64_t end) { planes_linear_cpu(args, begin, end); });
      break;
    case Layout::tile:
    case Layout::pair:
      break;  // left above
  }
  return y;
}

}  // namespace simmim

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "add_splits.cuh"
#include "launch.cuh"
#include "rounding.cuh"
#include "tile_sums.cuh"

namespace simmim {
namespace {

// How the work is shared out. The warps of a block take kBatchTiles rows of tiles, so that more of
// them read the same x where there is more of it, and share the columns; where that leaves the
// device empty, blocks share the columns too.
struct Plan {
  int64_t batch_blocks, row_blocks, splits, split_tiles;

  Plan(const PackedTiles& shape, int64_t batch, int batch_tiles) {
    constexpr int64_t kBlocks = 256, kLeastTiles = 4;
    batch_blocks = ceil_div(batch, batch_tiles * kBatchTile);
    row_blocks = ceil_div(shape.row_tiles(), batch_tiles);
    const int64_t blocks = std::max<int64_t>(batch_blocks * row_blocks, 1);
    const int64_t most = std::max<int64_t>(shape.column_tiles() / kLeastTiles, 1);
    splits = batch_tiles < kTileWarps ? 1 : std::clamp<int64_t>(kBlocks / blocks, 1, most);
    split_tiles = ceil_div(shape.column_tiles(), splits);
    if (split_tiles > 0) splits = ceil_div(shape.column_tiles(), split_tiles);
  }
};

// partial [splits, batch, out_features] takes the sums, or, where it is null, y does.
template <typename Form, int kBatchTiles>
__global__ void __launch_bounds__(kTileThreads, 2)
    tile_linear_kernel(TileLinearArgs<typename Form::Stored> args, Plan plan, float* partial) {
  using Stored = typename Form::Stored;
  constexpr int kRowWarps = kBatchTiles, kColumnWarps = kTileWarps / kRowWarps;
  const PackedTiles& shape = args.shape;
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int column_warp = warp / kRowWarps;
  const int64_t row_tile = blockIdx.x / plan.batch_blocks * kRowWarps + warp % kRowWarps;
  const int64_t first_sample = blockIdx.x % plan.batch_blocks * (kBatchTiles * kBatchTile);
  const int64_t first_column = blockIdx.y * plan.split_tiles + column_warp;
  const int64_t past = (blockIdx.y + 1) * plan.split_tiles, column_tiles = shape.column_tiles();
  const int64_t end_column = past < column_tiles ? past : column_tiles;

  const int64_t* sizes = static_cast<const int64_t*>(args.packed);
  const bool fits = sizes[0] == shape.out_features && sizes[1] == shape.in_features;
  TileStream<Form> stream{static_cast<const uint4*>(args.packed),
                          row_tile * column_tiles + first_column,
                          kColumnWarps,
                          0,
                          shared_memory<unsigned char>() + warp * kWarpBytes<Form>,
                          0,
                          0};
  if (fits && row_tile < shape.row_tiles() && first_column < end_column) {
    stream.count = static_cast<int>((end_column - first_column + kColumnWarps - 1) / kColumnWarps);
  }
  const int64_t columns = column_tiles * kPackedColumns;
  const int64_t left = args.batch - first_sample;
  Samples<Stored> samples{
      args.x + first_sample * columns + first_column * kPackedColumns + lane % 4 * kLaneColumns,
      columns, static_cast<int>(left < kBatchTiles * kBatchTile ? left : kBatchTiles * kBatchTile)};
  const Samples<Stored> all = samples;

  float sums[kBatchTiles][4] = {};
  ExactSums<Stored> exact;  // float alone: the tensor cores would round it
  for (int i = 0; i < Form::kStages - 1; ++i) {
    if (i < stream.count) stream.fetch(i);
    copy_async_commit();
  }
  for (int i = 0; i < stream.count; ++i) {
    copy_async_wait<Form::kStages - 2>();
    __syncwarp();  // this tile has arrived, and all lanes have done with the one before
    if (i + Form::kStages - 1 < stream.count) stream.fetch(i + Form::kStages - 1);
    copy_async_commit();
    if constexpr (std::is_same_v<Stored, float>) {
      const unsigned char* stage = stream.stage(i);
      const uint32_t word = reinterpret_cast<const uint32_t*>(stage)[lane];
      const auto* values = reinterpret_cast<const Stored*>(stage + kWordUnits * kPackedUnit);
      exact.add(word, values + values_before(word), samples);
    } else {
      multiply_tile(stream, i, samples, sums);
    }
    samples.x += kColumnWarps * kPackedColumns;
  }
  if constexpr (std::is_same_v<Stored, float>) {
    exact.total(sums[0]);
  } else {
    repair(stream, all, sums);
  }

  // The warps that share the columns of a row add up, always in the same order.
  float* shared = shared_memory<float>() + (warp * kBatchTiles * 4) * kWarpLanes + lane;
  if (kColumnWarps > 1) {
    __syncthreads();  // the stages have served
    if (column_warp > 0) {
#pragma unroll
      for (int i = 0; i < 4 * kBatchTiles; ++i) shared[i * kWarpLanes] = sums[i / 4][i % 4];
    }
    __syncthreads();
    if (column_warp > 0) return;
#pragma unroll
    for (int i = 0; i < 4 * kBatchTiles; ++i) {
      for (int other = 1; other < kColumnWarps; ++other) {
        sums[i / 4][i % 4] += shared[(other * kRowWarps * kBatchTiles * 4 + i) * kWarpLanes];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4 * kBatchTiles; ++i) {
    const int64_t row = row_tile * kPackedRows + lane / 4 + i % 4 / 2 * (kPackedRows / 2);
    const int64_t sample = first_sample + i / 4 * kBatchTile + lane % 4 * 2 + i % 2;
    if (row >= shape.out_features || sample >= args.batch) continue;
    const float sum = fits ? sums[i / 4][i % 4] : NAN;
    const int64_t at = sample * shape.out_features + row;
    if (partial != nullptr) {
      partial[blockIdx.y * args.batch * shape.out_features + at] = sum;
    } else {
      const float bias = args.bias == nullptr ? 0.0f : static_cast<float>(args.bias[row]);
      args.y[at] = rounded<Stored>(sum + bias);
    }
  }
}

// The tiles of samples that a block takes.
template <typename Stored>
int batch_tiles_for(int64_t batch) {
  if (std::is_same_v<Stored, float> || batch <= kBatchTile) return 1;
  return batch <= 2 * kBatchTile ? 2 : kTileWarps;
}

template <typename Form, int kBatchTiles, typename Stored>
int launch_product(const TileLinearArgs<Stored>& args, float* scratch, void* stream) {
  const Plan plan(args.shape, args.batch, kBatchTiles);
  const dim3 grid(static_cast<unsigned>(plan.row_blocks * plan.batch_blocks),
                  static_cast<unsigned>(plan.splits));
  float* partial = plan.splits > 1 ? scratch : nullptr;
  const int error = launch(tile_linear_kernel<Form, kBatchTiles>, grid, dim3(kTileThreads),
                           size_t{kTileWarps * kWarpBytes<Form>}, stream, args, plan, partial);
  if (error != cudaSuccess || partial == nullptr) return error;
  return add_splits<Stored>(partial, plan.splits, args.bias, args.y, args.batch,
                            args.shape.out_features, stream);
}

template <typename Form, typename Stored>
int launch_form(const TileLinearArgs<Stored>& args, float* scratch, void* stream) {
  switch (batch_tiles_for<Stored>(args.batch)) {
    case 1:
      return launch_product<Form, 1>(args, scratch, stream);
    case 2:
      return launch_product<Form, 2>(args, scratch, stream);
    default:
      return launch_product<Form, kTileWarps>(args, scratch, stream);
  }
}

}  // namespace

template <typename Stored>
int64_t tile_linear_scratch(const TileLinearArgs<Stored>& args) {
  const Plan plan(args.shape, args.batch, batch_tiles_for<Stored>(args.batch));
  return plan.splits > 1 ? plan.splits * args.batch * args.shape.out_features : 0;
}

template <typename Stored>
int tile_linear_cuda(const TileLinearArgs<Stored>& args, float* scratch, void* stream) {
  if (args.batch == 0 || args.shape.out_features == 0) return cudaSuccess;
  if constexpr (std::is_same_v<Stored, float>) {
    return launch_product<BitsForm<float>, 1>(args, scratch, stream);
  } else {
    return args.form == TileForm::list ? launch_form<ListForm<Stored>>(args, scratch, stream)
                                       : launch_form<BitsForm<Stored>>(args, scratch, stream);
  }
}

#define SIMMIM_INSTANTIATE(Stored)                                     \
  template int64_t tile_linear_scratch(const TileLinearArgs<Stored>&); \
  template int tile_linear_cuda(const TileLinearArgs<Stored>&, float*, void*);
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

#include <algorithm>

#include "launch.cuh"
#include "tile_stream.cuh"

namespace simmim {
namespace {

// Calls visit(bit, place in the matrix) for every weight of this lane.
template <typename Visit>
__device__ __forceinline__ void each_weight(const PackedTiles& shape, int64_t tile, Visit&& visit) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t row = tile / shape.column_tiles() * kPackedRows + lane / 4;
  const int64_t column = tile % shape.column_tiles() * kPackedColumns + lane % 4 * kLaneColumns;
  for (int bit = 0; bit < 2 * kLaneColumns; ++bit) {
    const int64_t r = row + bit / kLaneColumns * (kPackedRows / 2), c = column + bit % kLaneColumns;
    if (r < shape.out_features && c < shape.in_features) visit(bit, r * shape.in_features + c);
  }
}

__device__ __forceinline__ uint32_t lane_word(const PackTilesArgs& args, int64_t tile) {
  uint32_t word = 0;
  each_weight(args.shape, tile, [&](int bit, int64_t place) {
    if (args.mask[place]) word |= 1u << bit;
  });
  return word;
}

__device__ __forceinline__ int64_t units_of(const PackTilesArgs& args, uint32_t word) {
  const int64_t bytes = warp_total(__popc(word)) * args.item_size;
  return kWordUnits + (bytes + kPackedUnit - 1) / kPackedUnit;
}

// The tile of this warp.
__device__ __forceinline__ int64_t warp_tile() {
  return int64_t{blockIdx.x} * kTileWarps + threadIdx.x / kWarpLanes;
}

__global__ void __launch_bounds__(kTileThreads)
    count_units_kernel(PackTilesArgs args, int64_t* units) {
  const int64_t tile = warp_tile();
  if (tile >= args.shape.tiles()) return;
  const int64_t count = units_of(args, lane_word(args, tile));
  if (threadIdx.x % kWarpLanes == 0) units[tile] = count;
}

template <typename Item>
__global__ void __launch_bounds__(kTileThreads)
    pack_tiles_kernel(PackTilesArgs args, const int64_t* ends, uint4* packed) {
  const PackedTiles& shape = args.shape;
  uint32_t* starts = reinterpret_cast<uint32_t*>(packed + 1);
  const int64_t tile = warp_tile(), tiles = shape.tiles();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    int64_t* sizes = reinterpret_cast<int64_t*>(packed);
    sizes[0] = shape.out_features;
    sizes[1] = shape.in_features;
    const int64_t units = tiles == 0 ? 0 : ends[tiles - 1];
    starts[tiles] = static_cast<uint32_t>(shape.first_unit() + units);
  }
  if (tile >= tiles) return;
  const int lane = threadIdx.x % kWarpLanes;
  const uint32_t word = lane_word(args, tile);
  const int64_t start = shape.first_unit() + ends[tile] - units_of(args, word);
  if (lane == 0) starts[tile] = static_cast<uint32_t>(start);
  reinterpret_cast<uint32_t*>(packed + start)[lane] = word;
  Item* values = reinterpret_cast<Item*>(packed + start + kWordUnits) + values_before(word);
  each_weight(shape, tile, [&](int bit, int64_t place) {
    if (word >> bit & 1) *values++ = static_cast<const Item*>(args.weight)[place];
  });
}

dim3 blocks_of_tiles(const PackedTiles& shape) {
  return dim3(static_cast<unsigned>(std::max<int64_t>(ceil_div(shape.tiles(), kTileWarps), 1)));
}

}  // namespace

int count_tile_units_cuda(const PackTilesArgs& args, int64_t* units, void* stream) {
  return launch(count_units_kernel, blocks_of_tiles(args.shape), dim3(kTileThreads), 0, stream,
                args, units);
}

int pack_tiles_cuda(const PackTilesArgs& args, const int64_t* ends, void* packed, void* stream) {
  const auto kernel =
      args.item_size == 2 ? pack_tiles_kernel<uint16_t> : pack_tiles_kernel<uint32_t>;
  return launch(kernel, blocks_of_tiles(args.shape), dim3(kTileThreads), 0, stream, args, ends,
                static_cast<uint4*>(packed));
}

}  // namespace simmim

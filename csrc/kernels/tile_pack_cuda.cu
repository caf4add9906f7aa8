#include <algorithm>

#include "launch.cuh"
#include "tile_list.cuh"

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

// Calls visit(kept, place in the tile, place in the matrix, which lanes' are kept) for every weight
// of a tile, by all lanes at a time.
template <typename Visit>
__device__ __forceinline__ void each_turn(const PackTilesArgs& args, int64_t tile, Visit&& visit) {
  const PackedTiles& shape = args.shape;
  const int64_t first_row = tile / shape.column_tiles() * kPackedRows;
  const int64_t first_column = tile % shape.column_tiles() * kPackedColumns;
  for (int turn = 0; turn < kTileWeights / kWarpLanes; ++turn) {
    const int i = turn * kWarpLanes + static_cast<int>(threadIdx.x % kWarpLanes);
    const TilePlace place{i / int{kPackedColumns}, i % int{kPackedColumns}};
    const int64_t row = first_row + place.row, column = first_column + place.column;
    const int64_t at = row * shape.in_features + column;
    const bool kept = row < shape.out_features && column < shape.in_features && args.mask[at] != 0;
    visit(kept, place, at, __ballot_sync(~0u, kept));
  }
}

__device__ __forceinline__ int list_steps(const PackTilesArgs& args, int64_t tile) {
  int kept = 0;
  each_turn(args, tile, [&](bool, TilePlace, int64_t, unsigned lanes) { kept += __popc(lanes); });
  return (kept + kWarpLanes - 1) / kWarpLanes;
}
__device__ __forceinline__ int64_t list_units(int steps) {
  return 1 + int64_t{steps} * kWarpLanes * int64_t{sizeof(uint32_t)} / kPackedUnit;
}

// The tile of this warp.
__device__ __forceinline__ int64_t warp_tile() {
  return int64_t{blockIdx.x} * kTileWarps + threadIdx.x / kWarpLanes;
}

__global__ void __launch_bounds__(kTileThreads)
    count_units_kernel(PackTilesArgs args, int64_t* units) {
  const int64_t tile = warp_tile();
  if (tile >= args.shape.tiles()) return;
  const int64_t count = args.form == TileForm::list ? list_units(list_steps(args, tile))
                                                    : units_of(args, lane_word(args, tile));
  if (threadIdx.x % kWarpLanes == 0) units[tile] = count;
}

__device__ __forceinline__ void write_list(const PackTilesArgs& args, int64_t tile, int steps,
                                           uint4* target) {
  const int lane = threadIdx.x % kWarpLanes;
  if (lane == 0) *target = make_uint4(static_cast<unsigned>(steps), 0, 0, 0);
  auto* words = reinterpret_cast<uint32_t*>(target + 1);
  int before = 0;
  each_turn(args, tile, [&](bool kept, TilePlace place, int64_t at, unsigned lanes) {
    if (kept) {
      const int entry = before + __popc(lanes & ((1u << lane) - 1));
      const uint32_t value = static_cast<const uint16_t*>(args.weight)[at];
      words[list_slot(entry, steps)] = static_cast<uint32_t>(place.offset()) << 16 | value;
    }
    before += __popc(lanes);
  });
  for (int entry = before + lane; entry < steps * kWarpLanes; entry += kWarpLanes) {
    words[list_slot(entry, steps)] = uint32_t{kNowhere} << 16;
  }
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
  if (args.form == TileForm::list) {
    const int steps = list_steps(args, tile);
    const int64_t start = shape.first_unit() + ends[tile] - list_units(steps);
    if (lane == 0) starts[tile] = static_cast<uint32_t>(start);
    write_list(args, tile, steps, packed + start);
    return;
  }
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

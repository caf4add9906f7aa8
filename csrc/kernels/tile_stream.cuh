// What packing and multiplying tiles have in common.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tensor_core.cuh"
#include "tile_linear.h"
#include "totals.cuh"

namespace simmim {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarpLanes;
constexpr int kBatchTile = 8;     // samples that one instruction of the tensor cores takes
constexpr int kLaneColumns = 16;  // of a tile
constexpr int kWordUnits = kWarpLanes * sizeof(uint32_t) / kPackedUnit;
constexpr int kTileWeights = kPackedRows * kPackedColumns;
static_assert(kTileWeights == kWarpLanes * 2 * kLaneColumns);

template <typename Stored>
constexpr int kStageBytes = kWordUnits * kPackedUnit + kTileWeights * sizeof(Stored);

// Tiles of a warp in shared memory, all but one on their way: what lets two blocks run at a time.
template <typename Stored>
constexpr int kStages = sizeof(Stored) == 4 ? 3 : 4;

// How many values the lanes before this one have.
__device__ __forceinline__ int values_before(uint32_t word) {
  const int lane = threadIdx.x % kWarpLanes, own = __popc(word);
  int sum = own;
#pragma unroll
  for (int lanes = 1; lanes < kWarpLanes; lanes *= 2) {
    const int other = __shfl_up_sync(~0u, sum, lanes);
    if (lane >= lanes) sum += other;
  }
  return sum - own;
}

// The tiles that a warp multiplies, of one row of tiles, on their way through shared memory.
template <typename Stored>
struct TileStream {
  const uint4* packed;
  int64_t first;          // tiles first, first + step, ...
  int step, count;        // of the tiles
  unsigned char* stages;  // [kStages, kStageBytes], the warp's own
  uint32_t begin, end;    // of the tile that this lane has looked up

  __device__ const uint32_t* starts() const {
    return reinterpret_cast<const uint32_t*>(packed + 1);
  }
  __device__ __forceinline__ unsigned char* stage(int i) const {
    return stages + i % kStages<Stored> * kStageBytes<Stored>;
  }
  // Starts copying tile i. Where the tiles lie is looked up for 32 of them at a time.
  __device__ __forceinline__ void fetch(int i) {
    const int lane = threadIdx.x % kWarpLanes, at = i % kWarpLanes;
    if (at == 0 && i + lane < count) {
      const uint32_t* start = starts() + first + int64_t{i + lane} * step;
      begin = start[0];
      end = start[1];
    }
    const uint32_t from = __shfl_sync(~0u, begin, at), to = __shfl_sync(~0u, end, at);
    const uint4* unit = packed + from + lane;
    unsigned char* target = stage(i) + lane * kPackedUnit;
#pragma unroll 1
    for (int left = static_cast<int>(to - from) - lane; left > 0; left -= kWarpLanes) {
      copy_async_16(target, unit);
      unit += kWarpLanes;
      target += kWarpLanes * kPackedUnit;
    }
  }
};

}  // namespace simmim

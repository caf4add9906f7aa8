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

// What a form of tiles takes of shared memory, for each warp. kStages: tiles, all but one on their
// way, so many that two blocks run at a time.
template <typename Value>
struct BitsForm {
  using Stored = Value;
  static constexpr int kStageBytes = kWordUnits * kPackedUnit + kTileWeights * sizeof(Stored);
  static constexpr int kStages = sizeof(Stored) == 4 ? 3 : 4;
  static constexpr int kDenseBytes = 0;
};
// A tile whose list is longer than a stage is read where it lies.
template <typename Value>
struct ListForm {
  using Stored = Value;
  static constexpr int kStageBytes = 2048;
  static constexpr int kStages = 4;
  static constexpr int kDenseBytes = kTileWeights * sizeof(Stored) + kPackedUnit;
};
template <typename Form>
constexpr int kWarpBytes = Form::kStages * Form::kStageBytes + Form::kDenseBytes;
static_assert(kTileWarps * kWarpBytes<BitsForm<float>> <= kLeastShared &&
              kTileWarps * kWarpBytes<ListForm<Half>> <= kLeastShared);

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
template <typename Form>
struct TileStream {
  const uint4* packed;
  int64_t first;          // tiles first, first + step, ...
  int step, count;        // of the tiles
  unsigned char* stages;  // [kStages, kStageBytes], the warp's own, and its dense tile
  uint32_t begin, end;    // of the tile that this lane has looked up

  __device__ const uint32_t* starts() const {
    return reinterpret_cast<const uint32_t*>(packed + 1);
  }
  __device__ __forceinline__ unsigned char* stage(int i) const {
    return stages + i % Form::kStages * Form::kStageBytes;
  }
  __device__ __forceinline__ unsigned char* dense() const {
    return stages + Form::kStages * Form::kStageBytes;
  }
  // Where tile i lies.
  __device__ __forceinline__ const uint4* tile(int i) const {
    return packed + starts()[first + int64_t{i} * step];
  }
  // Starts copying tile i. Where the tiles lie is looked up for 32 of them at a time.
  __device__ __forceinline__ void fetch(int i) {
    const int lane = threadIdx.x % kWarpLanes, at = i % kWarpLanes;
    if (at == 0 && i + lane < count) {
      const uint32_t* start = starts() + first + int64_t{i + lane} * step;
      begin = start[0];
      end = start[1];
    }
    constexpr uint32_t kMost = Form::kStageBytes / kPackedUnit;
    const uint32_t from = __shfl_sync(~0u, begin, at), to = __shfl_sync(~0u, end, at);
    const uint4* unit = packed + from + lane;
    unsigned char* target = stage(i) + lane * kPackedUnit;
#pragma unroll 1
    for (int left = static_cast<int>(to - from < kMost ? to - from : kMost) - lane; left > 0;
         left -= kWarpLanes) {
      copy_async_16(target, unit);
      unit += kWarpLanes;
      target += kWarpLanes * kPackedUnit;
    }
  }
};

}  // namespace simmim

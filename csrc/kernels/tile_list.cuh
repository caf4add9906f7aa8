// Tiles in the form of a list: where a weight of one lies in it, and in a dense tile in shared
// memory.
#pragma once

#include "tile_stream.cuh"

namespace simmim {

// A step has a word for each lane; those of four steps lie together, as far as there are four.
constexpr int kListSteps = 4;
__host__ __device__ constexpr int list_slot(int entry, int steps) {
  const int step = entry / kWarpLanes, lane = entry % kWarpLanes;
  const bool together = step < steps / kListSteps * kListSteps;
  return together ? (step / kListSteps * kWarpLanes + lane) * kListSteps + step % kListSteps
                  : entry;
}

// A dense tile has rows of kPackedColumns values in pieces of kPackedUnit bytes, which are permuted
// so that the eight rows of a matrix lie in different banks. The columns are permuted so that the
// lanes get, of fragment after fragment, what decode() gives them of the form of bits: lane 4 g + t
// the columns 16 t to 16 t + 15 of the rows g and g + 8.
constexpr int kRowBytes = kPackedColumns * sizeof(uint16_t);
constexpr int kNowhere = kPackedRows * kRowBytes;  // a place behind the tile, which nobody reads

struct TilePlace {
  int row, column;

  __host__ __device__ constexpr int offset() const {
    const int piece = column % 16 / 4 * 2 + column % 4 / 2;
    const int value = column / 16 * 2 + column % 2;
    return row * kRowBytes + (piece ^ row % 8) * kPackedUnit + value * 2;
  }
};
__host__ __device__ constexpr TilePlace place_at(int offset) {
  const int row = offset / kRowBytes, value = offset % kPackedUnit / 2;
  const int piece = offset % kRowBytes / kPackedUnit ^ row % 8;
  return {row, value / 2 * 16 + piece / 2 * 4 + piece % 2 * 2 + value % 2};
}

// A list in memory: a unit with the count of its steps, and what is in them.
__device__ __forceinline__ int steps_of(const uint4* list) { return static_cast<int>(list->x); }
__device__ __forceinline__ uint32_t word_of(const uint4* list, int slot) {
  return reinterpret_cast<const uint32_t*>(list + 1)[slot];
}

__device__ __forceinline__ void put(uint32_t entry, unsigned char* dense) {
  *reinterpret_cast<uint16_t*>(dense + (entry >> 16)) = static_cast<uint16_t>(entry);
}

__device__ __forceinline__ void scatter(const uint4* list, int steps, unsigned char* dense) {
  const int lane = threadIdx.x % kWarpLanes;
  int step = 0;
#pragma unroll 1
  for (; step + kListSteps <= steps; step += kListSteps) {
    const uint4 entries = list[1 + step / kListSteps * kWarpLanes + lane];
    put(entries.x, dense);
    put(entries.y, dense);
    put(entries.z, dense);
    put(entries.w, dense);
  }
#pragma unroll 1
  for (; step < steps; ++step) put(word_of(list, step * kWarpLanes + lane), dense);
}

// The weights of a stream's tile i as a lane's fragments, by way of a dense tile.
template <typename Form>
__device__ __forceinline__ void decode(const TileStream<Form>& stream, int i,
                                       uint32_t (&fragments)[4][4]) {
  constexpr int kMost = (Form::kStageBytes - kPackedUnit) / int{kWarpLanes * sizeof(uint32_t)};
  const int lane = threadIdx.x % kWarpLanes;
  unsigned char* dense = stream.dense();
#pragma unroll
  for (int part = 0; part < kNowhere / (kPackedUnit * kWarpLanes); ++part) {
    reinterpret_cast<uint4*>(dense)[part * kWarpLanes + lane] = make_uint4(0, 0, 0, 0);
  }
  __syncwarp();
  const auto* stage = reinterpret_cast<const uint4*>(stream.stage(i));
  const int steps = steps_of(stage);
  if (steps <= kMost) {
    scatter(stage, steps, dense);
  } else {
    scatter(stream.tile(i), steps, dense);  // the stage has but its beginning
  }
  __syncwarp();
  // Lane 8 m + r points to row r of matrix m: those of rows 0 to 7 and 8 to 15, piece by piece.
  const unsigned char* row = dense + (lane % 8 + lane / 8 % 2 * 8) * kRowBytes;
#pragma unroll
  for (int fragment = 0; fragment < 4; ++fragment) {
    const int piece = 2 * fragment + lane / 16;
    load_matrices(fragments[fragment], row + (piece ^ lane % 8) * kPackedUnit);
  }
}

}  // namespace simmim

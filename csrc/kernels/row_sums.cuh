// The products of two rows' lists, half a warp each: on tensor cores, or lane by lane.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "row_linear.h"
#include "tensor_core.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {

// The samples of one chunk in shared memory: planes of so many samples, [slots] units in each, the
// last of them all 0.
template <typename Stored>
constexpr int kPlaneSamples = kRowUnit / sizeof(Stored);
struct Planes {
  const uint4* units;
  int slots;  // of a plane

  __device__ const uint4* unit(int plane, int slot) const { return units + plane * slots + slot; }
};

// Lists of a warp's two rows.
struct RowPair {
  const unsigned char* lists[2];
  int kept[2];

  __device__ int half() const { return threadIdx.x % kWarpLanes / kStepWeights; }
  __device__ int lane() const { return threadIdx.x % kStepWeights; }
  // Of this lane's row from a block on; 0 or less where it has ended.
  __device__ int left(int block) const {
    return (half() == 0 ? kept[0] : kept[1]) - block * kBlockWeights;
  }
  __device__ int most() const { return kept[0] > kept[1] ? kept[0] : kept[1]; }
};

// A lane's codes of one block.
struct Codes {
  uint32_t words[3];

  __device__ __forceinline__ void load(const RowPair& pair, int block, int item_size) {
    const int steps = block_steps(pair.left(block));
    const unsigned char* list = pair.half() == 0 ? pair.lists[0] : pair.lists[1];
    const unsigned char* values = list + block * block_bytes(kBlockSteps, item_size);
    const auto* from =
        reinterpret_cast<const uint32_t*>(values + steps * kStepWeights * item_size) + pair.lane();
#pragma unroll
    for (int word = 0; word < 3; ++word) {
      words[word] = 0;
      if (word < code_words(steps)) words[word] = from[word * kStepWeights];
    }
  }
  __device__ __forceinline__ int operator[](int step) const {
    const int word = kCodeBits * step / 32, shift = kCodeBits * step % 32;
    uint32_t code = words[word] >> shift;
    if (shift > 32 - kCodeBits) code |= words[word + 1] << (32 - shift);
    return static_cast<int>(code & ((1u << kCodeBits) - 1));
  }
};
static_assert(kBlockSteps * kCodeBits == 3 * 32);

// float: every lane adds up its own products.
template <typename Stored, int kPlanes>
struct RowSums {
  static constexpr int kSamples = kPlanes * kPlaneSamples<Stored>;
  float sums[kSamples] = {};

  struct Block {
    Codes codes;
    Stored weights[kBlockSteps];

    __device__ __forceinline__ void load(const RowPair& pair, int block) {
      codes.load(pair, block, sizeof(Stored));
      const unsigned char* list = pair.half() == 0 ? pair.lists[0] : pair.lists[1];
      const auto* from =
          reinterpret_cast<const Stored*>(list + block * block_bytes(kBlockSteps, sizeof(Stored)));
      const int steps = block_steps(pair.left(block));
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        weights[step] = 0;
        if (step < steps) weights[step] = from[step * kStepWeights + place_of(pair.lane())];
      }
    }
  };

  __device__ __forceinline__ void step(const Block& block, int step, const Planes& x, int slot) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      constexpr int kCount = kPlaneSamples<Stored>;
      const auto values = load<kCount>(reinterpret_cast<const Stored*>(x.unit(plane, slot)));
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[plane * kCount + i] += block.weights[step] * values[i];
    }
  }

  // What this lane returns is of its row and this sample.
  __device__ static int row() { return threadIdx.x % kWarpLanes / kStepWeights; }
  __device__ static int sample() { return threadIdx.x % kStepWeights; }
  __device__ __forceinline__ float total() const {
    float result = 0;
#pragma unroll
    for (int i = 0; i < kSamples; ++i) {
      const float sum = warp_total(sums[i], kStepWeights);
      if (sample() == i) result = sum;
    }
    return result;
  }
};

// 16 bits: for each step a product of the gathered samples [16, 16 lanes] by the weights of all
// steps [16 lanes, 8 steps], of which one column is wanted. The others cost nothing, for so the
// weights are in every lane what they were when they were read; and as each step has its own sums,
// infinities and NaNs in what is not wanted do no harm.
template <typename Stored, int kPlanes>
struct TensorRowSums {
  static constexpr int kSamples = kPlanes * kPlaneSamples<Stored>;
  float sums[2][kBlockSteps][4] = {};

  struct Block {
    Codes codes;
    uint2 weights[2];

    // Lane 4 g + t takes of both rows those of step g and lanes 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
    __device__ __forceinline__ void load(const RowPair& pair, int block) {
      codes.load(pair, block, sizeof(Stored));
      const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        weights[row] = make_uint2(0, 0);
        if (lane / 4 * kStepWeights < pair.kept[row] - block * kBlockWeights) {
          weights[row] = reinterpret_cast<const uint2*>(
              pair.lists[row] + block * block_bytes(kBlockSteps, sizeof(Stored)))[lane];
        }
      }
    }
  };

  __device__ __forceinline__ void step(const Block& block, int step, const Planes& x, int slot) {
    uint32_t gathered[2][4] = {};
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      load_transposed(gathered[plane], x.unit(plane, slot));
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t samples[4] = {gathered[0][2 * row], gathered[1][2 * row],
                                   gathered[0][2 * row + 1], gathered[1][2 * row + 1]};
      mma<Stored>(sums[row][step], samples, block.weights[row].x, block.weights[row].y);
    }
  }

  __device__ static int row() { return threadIdx.x % 4 / 2; }
  __device__ static int sample() { return threadIdx.x % kWarpLanes / 4 + threadIdx.x % 2 * 8; }
  __device__ __forceinline__ float total() const {
    float result = 0;
#pragma unroll
    for (int which = 0; which < 4; ++which) {  // of the row, and of the 8 samples
      float sum = 0;
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        const float own = sums[which / 2][step][which % 2 * 2 + step % 2];
        if (static_cast<int>(threadIdx.x % 4) == step / 2) sum += own;
      }
      sum = warp_total(sum, 4);
      if (static_cast<int>(threadIdx.x % 4) == which) result = sum;
    }
    return result;
  }
};
template <int kPlanes>
struct RowSums<Half, kPlanes> : TensorRowSums<Half, kPlanes> {};
template <int kPlanes>
struct RowSums<BFloat16, kPlanes> : TensorRowSums<BFloat16, kPlanes> {};

}  // namespace simmim

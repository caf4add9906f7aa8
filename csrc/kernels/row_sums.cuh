// The products of a row's list by a warp: on tensor cores, or lane by lane.
#pragma once

#include <cuda_runtime.h>

#include "row_linear.h"
#include "tensor_core.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {

// Shared memory holds the samples in planes: of so many samples, a unit for each column.
template <typename Stored>
constexpr int kPlaneSamples = kRowUnit / sizeof(Stored);

struct OpenList {
  const unsigned char* begin;
  int kept;

  __device__ int steps(int block) const { return block_steps(kept - block * kBlockWeights); }
  __device__ const unsigned char* block(int block, int item_size) const {
    return begin + block * block_bytes(kBlockSteps, item_size);
  }
};

// A lane's codes of one block.
struct Codes {
  static constexpr int kWords = kBlockSteps * kCodeBits / 32;
  uint32_t words[kWords];

  __device__ __forceinline__ void load(const OpenList& list, int block, int item_size) {
    const int steps = list.steps(block);
    const auto* from = reinterpret_cast<const uint32_t*>(list.block(block, item_size) +
                                                         steps * kStepWeights * item_size);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      words[word] = 0;
      if (word < code_words(steps))
        words[word] = from[word * kWarpLanes + threadIdx.x % kWarpLanes];
    }
  }
  __device__ __forceinline__ int operator[](int step) const {
    const int word = kCodeBits * step / 32, shift = kCodeBits * step % 32;
    uint32_t code = words[word] >> shift;
    if (shift > 32 - kCodeBits) code |= words[word + 1] << (32 - shift);
    return static_cast<int>(code & ((1u << kCodeBits) - 1));
  }
};

// float: every lane adds up its own products.
template <typename Stored, int kPlanes>
struct RowSums {
  static constexpr int kSamples = kPlanes * kPlaneSamples<Stored>;
  float sums[kSamples] = {};

  struct Block {
    Codes codes;
    Stored weights[kBlockSteps];

    __device__ __forceinline__ void load(const OpenList& list, int block) {
      codes.load(list, block, sizeof(Stored));
      const auto* from = reinterpret_cast<const Stored*>(list.block(block, sizeof(Stored))) +
                         place_of(threadIdx.x % kWarpLanes);
      const int steps = list.steps(block);
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        weights[step] = 0;
        if (step < steps) weights[step] = from[step * kStepWeights];
      }
    }
  };

  // x: this lane's column in the first plane; the next is `slots` further.
  __device__ __forceinline__ void step(const Block& block, int step, const uint4* x, int slots) {
    constexpr int kCount = kPlaneSamples<Stored>;
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      const auto values = load<kCount>(reinterpret_cast<const Stored*>(x + plane * slots));
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[plane * kCount + i] += block.weights[step] * values[i];
    }
  }

  // The sample whose total this lane returns.
  __device__ static int sample() { return threadIdx.x % kWarpLanes; }
  __device__ __forceinline__ float total() const {
    float result = 0;
#pragma unroll
    for (int i = 0; i < kSamples; ++i) {
      const float sum = warp_total(sums[i]);
      if (sample() == i) result = sum;
    }
    return result;
  }
};

// 16 bits: what a step gathers, 8 samples for each of 32 weights, is two halves of the rows of a
// matrix [2 * 8 samples, 16 weights], which is multiplied by the weights of 8 halves [16 weights,
// 8]: of the 8 columns of either half of the rows one is wanted. The others cost nothing, for so
// the weights lie in every lane as they were read; and as the steps that share a block have sums of
// their own, infinities and NaNs in what is not wanted do no harm.
template <typename Stored, int kPlanes>
struct TensorRowSums {
  static constexpr int kSamples = kPlanes * kPlaneSamples<Stored>;
  static constexpr int kTileSteps = 4;  // whose weights make one matrix
  float sums[kPlanes][kTileSteps][4] = {};

  struct Block {
    Codes codes;
    uint2 weights[kBlockSteps / kTileSteps];

    __device__ __forceinline__ void load(const OpenList& list, int block) {
      codes.load(list, block, sizeof(Stored));
      const int lane = threadIdx.x % kWarpLanes, steps = list.steps(block);
      const auto* from = reinterpret_cast<const uint2*>(list.block(block, sizeof(Stored))) + lane;
#pragma unroll
      for (int tile = 0; tile < kBlockSteps / kTileSteps; ++tile) {
        weights[tile] = make_uint2(0, 0);
        if (tile * kTileSteps + lane / 8 < steps) weights[tile] = from[tile * kWarpLanes];
      }
    }
  };

  __device__ __forceinline__ void step(const Block& block, int step, const uint4* x, int slots) {
    const uint2& weights = block.weights[step / kTileSteps];
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      uint32_t gathered[4];
      load_transposed(gathered, x + plane * slots);
      mma<Stored>(sums[plane][step % kTileSteps], gathered, weights.x, weights.y);
    }
  }

  __device__ static int sample() {
    return threadIdx.x % 4 * kPlaneSamples<Stored> + threadIdx.x % kWarpLanes / 4;
  }
  __device__ __forceinline__ float total() const {
    const int quarter = threadIdx.x % 4;
    float result = 0;
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      float sum = 0;
#pragma unroll
      for (int step = 0; step < kTileSteps; ++step) {
        if (quarter == step) sum = sums[plane][step][0] + sums[plane][step][3];
      }
      sum = warp_total(sum, 4);
      if (quarter == plane) result = sum;
    }
    return result;
  }
};
template <int kPlanes>
struct RowSums<Half, kPlanes> : TensorRowSums<Half, kPlanes> {};
template <int kPlanes>
struct RowSums<BFloat16, kPlanes> : TensorRowSums<BFloat16, kPlanes> {};

}  // namespace simmim

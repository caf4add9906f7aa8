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

// A block of a list that a warp reads.
struct BlockPlace {
  const unsigned char* begin;
  int left;  // of the list's weights from here on, 0 in a list without

  __device__ int steps() const { return block_steps(left); }
};

// A lane's codes of one block.
struct Codes {
  static constexpr int kWords = kBlockSteps * kCodeBits / 32;
  uint32_t words[kWords];

  __device__ __forceinline__ void load(const BlockPlace& place, int item_size) {
    const int steps = place.steps();
    const auto* from =
        reinterpret_cast<const uint32_t*>(place.begin + steps * kStepWeights * item_size);
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
    int left;
    Codes codes;
    Stored weights[kBlockSteps];

    __device__ __forceinline__ void load(const BlockPlace& place) {
      left = place.left;
      codes.load(place, sizeof(Stored));
      const auto* from =
          reinterpret_cast<const Stored*>(place.begin) + place_of(threadIdx.x % kWarpLanes);
      const int steps = place.steps();
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        weights[step] = 0;
        if (step < steps) weights[step] = from[step * kStepWeights];
      }
    }
  };

  // The steps of a tile. x: this lane's columns in the first plane; the next is `slots` further.
  __device__ __forceinline__ void add(const Block& block, int tile, const uint4* (&x)[kTileSteps],
                                      int slots) {
    constexpr int kCount = kPlaneSamples<Stored>;
#pragma unroll
    for (int step = 0; step < kTileSteps; ++step) {
      const Stored weight = block.weights[tile * kTileSteps + step];
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        const auto values = load<kCount>(reinterpret_cast<const Stored*>(x[step] + plane * slots));
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[plane * kCount + i] += weight * values[i];
      }
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
  float sums[kPlanes][kTileSteps][4] = {};

  struct Block {
    int left;
    Codes codes;
    uint2 weights[kBlockSteps / kTileSteps];

    __device__ __forceinline__ void load(const BlockPlace& place) {
      left = place.left;
      codes.load(place, sizeof(Stored));
      const int lane = threadIdx.x % kWarpLanes, steps = place.steps();
      const auto* from = reinterpret_cast<const uint2*>(place.begin) + lane;
#pragma unroll
      for (int tile = 0; tile < kBlockSteps / kTileSteps; ++tile) {
        weights[tile] = make_uint2(0, 0);
        if (tile * kTileSteps + lane / 8 < steps) weights[tile] = from[tile * kWarpLanes];
      }
    }
  };

  __device__ __forceinline__ void add(const Block& block, int tile, const uint4* (&x)[kTileSteps],
                                      int slots) {
    const uint2& weights = block.weights[tile];
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      uint32_t gathered[kTileSteps][4];
#pragma unroll
      for (int step = 0; step < kTileSteps; ++step) {
        load_transposed(gathered[step], x[step] + plane * slots);
      }
#pragma unroll
      for (int step = 0; step < kTileSteps; ++step) {
        mma<Stored>(sums[plane][step], gathered[step], weights.x, weights.y);
      }
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

// Sums over the threads of a warp or a block, the same in every run and in every thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace simmim {

constexpr int kWarpLanes = 32;

struct Plus {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Over `width` neighbouring lanes, a power of 2; all lanes of the warp call.
template <typename T, typename Add = Plus>
__device__ __forceinline__ T warp_total(T value, int width = kWarpLanes, const Add& add = {}) {
  for (int lanes = width / 2; lanes > 0; lanes /= 2) {
    value = add(value, __shfl_xor_sync(~0u, value, lanes));
  }
  return value;
}

// Over the block, all of whose threads call; scratch [warps] lies in shared memory.
template <typename T, typename Add = Plus>
__device__ __forceinline__ T block_total(T value, T* scratch, const Add& add = {}) {
  value = warp_total(value, kWarpLanes, add);
  __syncthreads();  // others may still read what they added up before
  if (threadIdx.x % kWarpLanes == 0) scratch[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  T total = scratch[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarpLanes; ++warp) total = add(total, scratch[warp]);
  return total;
}

// *first becomes the smallest index that any thread reports.
__device__ __forceinline__ void report_fault(int64_t* first, int64_t index) {
  atomicMin(reinterpret_cast<long long*>(first), static_cast<long long>(index));
}

}  // namespace simmim

// The one way in which kernels are launched and reach their shared memory: plain C++ calls, so that
// the tests can compile the same sources against an emulation of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace simmim {

template <typename... Parameters>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           Parameters... arguments) {
  constexpr size_t kDefaultShared = 48 * 1024;  // more must be asked for
  if (shared_bytes > kDefaultShared) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The block's shared memory, of the size given at launch. Kernels declare no other: the emulation
// poisons what lies beyond it.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char simmim_shared_memory[];
  return reinterpret_cast<T*>(simmim_shared_memory);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace simmim

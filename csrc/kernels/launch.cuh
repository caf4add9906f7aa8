// The one way in which kernels are launched and reach their shared memory: plain C++ calls, so that
// the tests can compile the same sources against an emulation of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace simmim {

// Lets a kernel have so much shared memory. What it may have only grows: another thread may be
// about to launch it with more.
inline int allow_shared(const void* kernel, size_t bytes) {
  constexpr size_t kDefault = 48 * 1024;  // more must be asked for, on each device
  if (bytes <= kDefault) return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

// What a block can have of shared memory on every device since compute capability 8.0.
constexpr size_t kLeastShared = 99 * 1024;

// Whether a block on the current device can have so much: 227 KB on an H100.
inline bool can_share(size_t bytes) {
  int device = 0, most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         bytes <= static_cast<size_t>(most);
}

template <typename... Parameters>
int launch_with(cudaLaunchConfig_t config, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                size_t shared_bytes, void* stream, Parameters... arguments) {
  const int error = allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (error != cudaSuccess) return error;
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename... Parameters>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           Parameters... arguments) {
  return launch_with({}, kernel, grid, block, shared_bytes, stream, arguments...);
}

// Launches a small kernel that ends what the one before it in the stream began. On Hopper its
// launch is over by the time it may begin; so it must wait_for_previous() before it reads or writes
// anything. Graphs record such launches since CUDA 12.3.
template <typename... Parameters>
int launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                 void* stream, Parameters... arguments) {
  cudaFuncAttributes compiled = {};
  int driver = 0;
  cudaError_t error = cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.attrs = &early;
  const bool waits = compiled.ptxVersion >= 90 && compiled.binaryVersion / 10 == 9;
  config.numAttrs = waits && driver >= 12030 ? 1 : 0;
  return launch_with(config, kernel, grid, block, shared_bytes, stream, arguments...);
}

#ifdef __CUDACC__
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#else
inline void wait_for_previous() { simt::wait_for_previous(); }
#endif

// The block's shared memory, of the size given at launch. Kernels declare no other: the emulation
// poisons what lies beyond it.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char simmim_shared_memory[];
  return reinterpret_cast<T*>(simmim_shared_memory);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace simmim

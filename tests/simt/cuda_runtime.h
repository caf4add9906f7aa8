// An emulation of the CUDA runtime, enough to compile csrc/kernels/*.cu as plain C++ and run them
// on a machine without a GPU: in place of <cuda_runtime.h>, found first on the include path.
//
// Every thread of a block is a fiber that runs until it meets a barrier, a warp operation or an
// atomic; which one goes on is drawn at random from SIMT_SEED, and so is the order of the blocks.
// So a missing barrier gives wrong answers under some seed, a barrier that not all threads reach is
// reported, and AddressSanitizer sees every access: shared memory is filled with a pattern before
// each block and poisoned beyond the size given at launch. What it does not show: races within a
// warp's lockstep, memory order, speed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
namespace simt {
// The one device is an H100, unless a test makes it a chip with less.
inline int capability_major = 9;
constexpr size_t kSharedCapacity = 227 * 1024;  // of a block
inline size_t shared_capacity = kSharedCapacity;
}  // namespace simt
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? simt::capability_major
                                                          : static_cast<int>(simt::shared_capacity);
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
struct cudaFuncAttributes {
  int ptxVersion, binaryVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = attributes->binaryVersion = simt::capability_major * 10;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
using cudaStream_t = struct CUstream_st*;
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;  // one that lets the kernel begin early, or none
  unsigned numAttrs;
};

namespace simt {

constexpr int kWarpSize = 32;

// Where a fiber gives way to the others.
void sync_block();
void sync_warp(unsigned mask);
void step();  // may go on at once

// What every thread of a kernel that begins early must have called.
void wait_for_previous();

// Deposits a value for the lanes of mask, and returns that of source_lane.
uint64_t exchange(unsigned mask, uint64_t value, int source_lane);
// Bit l: whether lane l of mask deposited a value other than 0.
unsigned vote(unsigned mask, bool predicate);
int lane();

// A copy to shared memory that may arrive at once, or not before the thread waits for it.
void copy_async(void* shared, const void* global, size_t bytes);
void copy_async_commit();
void copy_async_wait(size_t groups);  // all but the last so many

// Four matrices [8, 8] whose rows the lanes point to, transposed, as ldmatrix deals them out.
void load_transposed(uint32_t (&matrices)[4], const uint16_t* row);
void load_matrices(uint32_t (&matrices)[4], const uint16_t* row);  // not transposed
// sums += a warp's m16n8k256 product of bits: a in fragment[0..3], b in fragment[4..5].
void mma_and_popc(int32_t (&sums)[4], const uint32_t (&fragment)[6]);
// sums += a warp's m16n8k32 product of bytes without a sign, likewise.
void mma_bytes(int32_t (&sums)[4], const uint32_t (&fragment)[6]);
// sums += a warp's m16n8k16 product of 16-bit values, likewise.
void mma(float (&sums)[4], const uint32_t (&fragment)[6], float (*value)(uint16_t bits));

// A float rounded to the nearest, ties to even.
uint16_t bfloat16_bits(float value);
uint16_t float16_bits(float value);

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

}  // namespace simt

// Of the thread whose fiber runs.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  return simt::run(*config, [=] { kernel(arguments...); });
}

inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::sync_warp(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = simt::exchange(mask, bits, lane % simt::kWarpSize);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, simt::lane() ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes) {
  const int source = simt::lane() - static_cast<int>(lanes);
  return __shfl_sync(mask, value, source >= 0 ? source : simt::lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const int source = simt::lane() + static_cast<int>(lanes);
  return __shfl_sync(mask, value, source < simt::kWarpSize ? source : simt::lane());
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) { return simt::vote(mask, predicate); }
inline bool __any_sync(unsigned mask, bool predicate) { return simt::vote(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return simt::vote(mask, !predicate) == 0; }

// Fibers change only where they say so, so that plain arithmetic is atomic.
template <typename T, typename U>
T atomicAdd(T* address, U value) {
  simt::step();
  const T before = *address;
  *address = before + static_cast<T>(value);
  return before;
}

template <typename T>
T atomicMin(T* address, T value) {
  simt::step();
  const T before = *address;
  if (value < before) *address = value;
  return before;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(value); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// float to what a tensor stores, to the nearest, ties to even.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"

namespace simmim {

template <typename Stored>
__device__ __forceinline__ Stored rounded(float value);

template <>
__device__ __forceinline__ float rounded(float value) {
  return value;
}

#ifdef __CUDACC__

template <>
__device__ __forceinline__ BFloat16 rounded(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
template <>
__device__ __forceinline__ Half rounded(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

#else

template <>
inline BFloat16 rounded(float value) {
  return {simt::bfloat16_bits(value)};
}
template <>
inline Half rounded(float value) {
  return {simt::float16_bits(value)};
}

#endif

}  // namespace simmim

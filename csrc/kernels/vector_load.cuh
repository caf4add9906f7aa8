// Neighbouring values that are read or written by one instruction.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace simmim {

// Lies at a multiple of its size, which is at most 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];

  __device__ __forceinline__ T operator[](int i) const { return values[i]; }
};

template <int kCount, typename T>
__device__ __forceinline__ Vector<T, kCount> load(const T* source) {
  return *reinterpret_cast<const Vector<T, kCount>*>(source);
}
template <int kCount, typename T>
__device__ __forceinline__ void store(const Vector<T, kCount>& values, T* target) {
  *reinterpret_cast<Vector<T, kCount>*>(target) = values;
}

// Whether rows of `length` values of T from each of the pointers on are made of such vectors.
template <int kCount, typename T>
bool fits_vectors(const T* rows, int64_t length) {
  return length % kCount == 0 && reinterpret_cast<uintptr_t>(rows) % (sizeof(T) * kCount) == 0;
}

}  // namespace simmim

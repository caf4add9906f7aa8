// float16 and bfloat16 as they lie in memory, without torch's or CUDA's types.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace simmim {

SIMMIM_HD float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct BFloat16 {
  uint16_t bits;

  SIMMIM_HD operator float() const { return float_from_bits(uint32_t{bits} << 16); }
};

// To the nearest, ties to even; what is not a number stays so.
inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct Half {
  uint16_t bits;

  // On the CPU free of branches, so that loops over it vectorise: exponent and mantissa shifted
  // into place read as the value times 2^-112, for normal and subnormal numbers alike.
  SIMMIM_HD operator float() const {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t magnitude = (bits & 0x7fffu) << 13;
    const float scaled = float_from_bits(magnitude) * 0x1p112f;
    uint32_t result;
    memcpy(&result, &scaled, sizeof result);
    const bool finite = magnitude < 0x0f800000u;
    return float_from_bits(sign | (finite ? result : magnitude | 0x7f800000u));
#endif
  }
};

// The type that a stored value is binned in: float, but for double.
template <typename Stored>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename Stored>
using compute_t = typename ComputeType<Stored>::type;

}  // namespace simmim

// Values to bin: inside, outside and on the edge of [-1, 1], NaN and infinity.
#pragma once

#include <cmath>
#include <cstring>
#include <random>

#include "../../csrc/kernels/half.h"

namespace simt {

template <typename Stored>
Stored stored(float value) {
  return static_cast<Stored>(value);
}
template <>
inline simmim::BFloat16 stored(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
inline simmim::Half stored(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  simmim::Half result;
  memcpy(&result, &half, 2);
  return result;
}

inline float draw(std::mt19937& random) {
  switch (random() % 16) {
    case 0:
      return NAN;
    case 1:
      return INFINITY;
    case 2:
      return 1.0f;  // the closed upper edge
    default:
      return std::uniform_real_distribution<float>(-1.2f, 1.2f)(random);
  }
}

}  // namespace simt

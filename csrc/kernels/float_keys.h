// Values as unsigned integers that ascend as they do.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace simmim {

// Bit patterns as integers: magnitudes ascend up to infinity, and above it lies NaN.
template <typename Stored>
struct FloatBits;
template <>
struct FloatBits<Half> {
  using Key = uint16_t;
  static constexpr Key kInfinity = 0x7c00;
};
template <>
struct FloatBits<BFloat16> {
  using Key = uint16_t;
  static constexpr Key kInfinity = 0x7f80;
};
template <>
struct FloatBits<float> {
  using Key = uint32_t;
  static constexpr Key kInfinity = 0x7f800000;
};
template <>
struct FloatBits<double> {
  using Key = uint64_t;
  static constexpr Key kInfinity = 0x7ff0000000000000;
};
template <typename Stored>
using KeyOf = typename FloatBits<Stored>::Key;

template <typename Key>
constexpr Key kSign = static_cast<Key>(Key{1} << (8 * sizeof(Key) - 1));
// What is not finite has this key, as no other value has.
template <typename Key>
constexpr Key kNotFinite = static_cast<Key>(~Key{0});

template <typename Stored, typename Key = KeyOf<Stored>>
[[gnu::always_inline]] inline Key key_of(const Stored& value) {
  Key bits;
  memcpy(&bits, &value, sizeof bits);
  const Key magnitude = bits & static_cast<Key>(~kSign<Key>);
  const Key key = bits == magnitude ? bits | kSign<Key> : ~bits;
  return magnitude < FloatBits<Stored>::kInfinity ? key : kNotFinite<Key>;
}

template <typename Stored, typename Key = KeyOf<Stored>>
Stored value_of(Key key) {
  const Key bits = key & kSign<Key> ? key ^ kSign<Key> : ~key;
  Stored value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simmim

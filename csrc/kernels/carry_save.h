// Positional population count by carry-save addition: how often each bit of a stream of words is
// set, as in Clausecker, Lemire and Schintke, "Faster positional population counts for AVX2,
// AVX-512 and ASIMD" (arXiv 2412.16370).
//
// Counts are held as bit planes: bit b of plane k is bit k of the count of bit b. Adding 16 words
// costs 15 full adders of 5 bitwise operations each, and no memory but the planes. Everything is
// written with the compiler's vector extension, in the width of the caller's target.
#pragma once

#include <cstdint>
#include <cstring>

namespace simmim {

template <typename Element, int kLanes>
struct VectorOf {
  typedef Element type __attribute__((vector_size(sizeof(Element) * kLanes)));
};
template <typename Element, int kLanes>
using vector_of = typename VectorOf<Element, kLanes>::type;

// What arrays of vectors are allocated as: the alignment of a vector type depends on the target.
struct alignas(64) CacheLine {
  unsigned char bytes[64];
};

template <typename Vector>
constexpr int64_t lines_of(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(Vector)) + 63) / 64;
}

template <typename Vector>
[[gnu::always_inline]] inline Vector load_vector(const void* source) {
  Vector result;
  memcpy(&result, source, sizeof result);
  return result;
}

template <typename Vector>
[[gnu::always_inline]] inline void full_add(Vector a, Vector b, Vector c, Vector& sum,
                                            Vector& carry) {
  const Vector either = a ^ b;
  sum = either ^ c;
  carry = (a & b) | (either & c);
}

// Counts of each bit of a Vector of words, up to kMaxRows of them.
template <typename Vector>
struct BitCounts {
  static constexpr int kPlanes = 16;
  static constexpr int kRows = 16;            // words added at a time
  static constexpr int64_t kMaxRows = 65520;  // the most rows of 16 that 16 bits can count

  Vector planes[kPlanes];
  // Carries of weight 256 that wait to enter plane 8. Planes 4 to 7 overflow at most once in 16
  // additions, so that it is enough to clear this every 16th time.
  Vector pending;

  [[gnu::always_inline]] void clear() {
    for (int k = 0; k < kPlanes; ++k) planes[k] = Vector{};
    pending = Vector{};
  }

  // words[0] to words[15]: an array, or what fetches each when it is asked for.
  template <typename Rows>
  [[gnu::always_inline]] void add(const Rows& words) {
    Vector p0 = planes[0], p1 = planes[1], p2 = planes[2], p3 = planes[3];
    Vector twos[2], fours[2], eights[2], carry;
    for (int half = 0; half < 2; ++half) {
      for (int quarter = 0; quarter < 2; ++quarter) {
        const int first = 8 * half + 4 * quarter;
        full_add(p0, words[first], words[first + 1], p0, twos[0]);
        full_add(p0, words[first + 2], words[first + 3], p0, twos[1]);
        full_add(p1, twos[0], twos[1], p1, fours[quarter]);
      }
      full_add(p2, fours[0], fours[1], p2, eights[half]);
    }
    full_add(p3, eights[0], eights[1], p3, carry);
    planes[0] = p0, planes[1] = p1, planes[2] = p2, planes[3] = p3;
    for (int k = 4; k < 8; ++k) {
      const Vector next = planes[k] & carry;
      planes[k] ^= carry;
      carry = next;
    }
    pending |= carry;
  }

  // Call after every 16th add, and before the counts are read.
  [[gnu::always_inline]] void settle() {
    Vector carry = pending;
    for (int k = 8; k < kPlanes; ++k) {
      const Vector next = planes[k] & carry;
      planes[k] ^= carry;
      carry = next;
    }
    pending = Vector{};
  }

  // counts[j] holds, in byte i of each 32-bit word, bits [8 * octet, 8 * octet + 8) of the count of
  // the word's bit 8 * i + j.
  [[gnu::always_inline]] void bytes_of_counts(int octet, Vector* counts) const {
    for (int j = 0; j < 8; ++j) {
      Vector bytes{};
      for (int k = 0; k < 8; ++k) bytes |= ((planes[8 * octet + k] >> j) & 0x01010101u) << k;
      counts[j] = bytes;
    }
  }
};

}  // namespace simmim

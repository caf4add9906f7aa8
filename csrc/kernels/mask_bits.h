// Iterates over the set bytes of a mask, 64 at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace simmim {

// Bit i tells whether byte i of mask [count] is not 0; count is at most 64.
[[gnu::always_inline]] inline uint64_t mask_bits(const uint8_t* mask, int64_t count) {
  uint64_t bits = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, mask + i, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    // Any bit of a byte to its lowest, which the product moves from byte k to bit 56 + k.
    bytes |= bytes >> 4 & 0x0f0f0f0f0f0f0f0f;
    bytes |= bytes >> 2 & 0x0303030303030303;
    bytes |= bytes >> 1;
    bytes &= 0x0101010101010101;
    bits |= (bytes * 0x0102040810204080) >> 56 << i;
  }
  for (; i < count; ++i) bits |= static_cast<uint64_t>(mask[i] != 0) << i;
  return bits;
}

// Calls kept(i) for every i of [0, count) whose byte is not 0, ascending.
template <typename Kept>
[[gnu::always_inline]] inline void for_each_kept(const uint8_t* mask, int64_t count,
                                                 const Kept& kept) {
  for (int64_t first = 0; first < count; first += 64) {
    const int64_t here = count - first < 64 ? count - first : 64;
    for (uint64_t bits = mask_bits(mask + first, here); bits != 0; bits &= bits - 1) {
      kept(first + __builtin_ctzll(bits));
    }
  }
}

}  // namespace simmim

// Reads a bitmap of kept weights, 64 at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace simmim {

// The bits of weights [begin, begin + 64) of a bitmap, 0 from `end` on; reads no byte beyond.
[[gnu::always_inline]] inline uint64_t bits_at(const uint8_t* bitmap, int64_t begin, int64_t end) {
  const uint8_t* first = bitmap + begin / 8;
  const int64_t shift = begin % 8, count = std::min<int64_t>(end - begin, 64);
  uint64_t low = 0;
  if (count == 64) {
    std::memcpy(&low, first, 8);
    return shift == 0 ? low : low >> shift | static_cast<uint64_t>(first[8]) << (64 - shift);
  }
  const int64_t bytes = (shift + count + 7) / 8;  // 9 where they straddle so many
  std::memcpy(&low, first, std::min<int64_t>(bytes, 8));
  uint64_t bits = low >> shift;
  if (bytes > 8) bits |= static_cast<uint64_t>(first[8]) << (64 - shift);
  return bits & ((uint64_t{1} << count) - 1);
}

[[gnu::always_inline]] inline int64_t count_kept(const uint8_t* bitmap, int64_t begin,
                                                 int64_t end) {
  int64_t kept = 0, i = begin;
  for (; i % 8 == 0 && i + 64 <= end; i += 64) {  // whole words
    uint64_t word;
    std::memcpy(&word, bitmap + i / 8, 8);
    kept += __builtin_popcountll(word);
  }
  for (; i < end; i += 64) kept += __builtin_popcountll(bits_at(bitmap, i, end));
  return kept;
}

}  // namespace simmim

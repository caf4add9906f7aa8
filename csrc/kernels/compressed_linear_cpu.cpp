#include <algorithm>
#include <cstring>

#include "compressed_linear.h"

namespace simmim {
namespace {

// The bits of weights [begin, begin + 64) of a bitmap, 0 from `end` on; reads no byte beyond.
inline uint64_t bits_at(const uint8_t* bitmap, int64_t begin, int64_t end) {
  const int64_t count = std::min<int64_t>(end - begin, 64);
  const int64_t first = begin / 8, shift = begin % 8;
  const int64_t bytes = (begin + count + 7) / 8 - first;  // 9 where 64 bits straddle so many
  uint64_t low = 0;
  std::memcpy(&low, bitmap + first, std::min<int64_t>(bytes, 8));
  uint64_t bits = low >> shift;
  if (bytes > 8) bits |= static_cast<uint64_t>(bitmap[first + 8]) << (64 - shift);
  return count < 64 ? bits & ((uint64_t{1} << count) - 1) : bits;
}

template <typename Item>
void decompress(const DecompressArgs& args, int64_t begin, int64_t end) {
  const Item* values = static_cast<const Item*>(args.values);
  Item* weights = static_cast<Item*>(args.weights);
  std::fill_n(weights, end - begin, Item{0});
  for (int64_t i = begin; i < end; i += 64, weights += 64) {
    for (uint64_t bits = bits_at(args.bitmap, i, end); bits != 0; bits &= bits - 1) {
      weights[__builtin_ctzll(bits)] = *values++;
    }
  }
}

}  // namespace

void pack_bits_cpu(const PackBitsArgs& args, int64_t begin, int64_t end) {
  for (int64_t byte = begin; byte < end; ++byte) {
    const int64_t count = std::min<int64_t>(args.weights - 8 * byte, 8);
    unsigned bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= (args.mask[8 * byte + i] != 0) << i;
    args.bitmap[byte] = static_cast<uint8_t>(bits);
  }
}

int64_t count_kept_cpu(const uint8_t* bitmap, int64_t begin, int64_t end) {
  int64_t kept = 0;
  for (int64_t i = begin; i < end; i += 64) kept += __builtin_popcountll(bits_at(bitmap, i, end));
  return kept;
}

void decompress_cpu(const DecompressArgs& args, int64_t begin, int64_t end) {
  switch (args.item_size) {
    case 2:
      return decompress<uint16_t>(args, begin, end);
    case 4:
      return decompress<uint32_t>(args, begin, end);
    default:
      return decompress<uint64_t>(args, begin, end);
  }
}

}  // namespace simmim

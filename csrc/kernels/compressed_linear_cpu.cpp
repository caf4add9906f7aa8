#include <algorithm>

#include "bitmap.h"
#include "compressed_linear.h"
#include "cpu_capability.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// Bit by bit.
template <typename Item>
[[gnu::always_inline]] inline void scatter(const uint8_t* bitmap, const Item* values, Item* weights,
                                           int64_t begin, int64_t end) {
  std::fill_n(weights, end - begin, Item{0});
  for (int64_t i = begin; i < end; i += 64, weights += 64) {
    for (uint64_t bits = bits_at(bitmap, i, end); bits != 0; bits &= bits - 1) {
      weights[__builtin_ctzll(bits)] = *values++;
    }
  }
}

template <typename Item>
void decompress(const DecompressArgs& args, int64_t begin, int64_t end) {
  scatter(args.bitmap, static_cast<const Item*>(args.values), static_cast<Item*>(args.weights),
          begin, end);
}

#if defined(__x86_64__)
// A vector of weights: of the values, those that are kept are read and no more.
SIMMIM_TARGET_AVX512_BF16 inline void expand(uint64_t bits, const uint16_t* values,
                                             uint16_t* weights) {
  const auto kept = static_cast<__mmask32>(bits);
  _mm512_storeu_si512(weights, _mm512_maskz_expandloadu_epi16(kept, values));
}
SIMMIM_TARGET_AVX512 inline void expand(uint64_t bits, const uint32_t* values, uint32_t* weights) {
  const auto kept = static_cast<__mmask16>(bits);
  _mm512_storeu_si512(weights, _mm512_maskz_expandloadu_epi32(kept, values));
}
SIMMIM_TARGET_AVX512 inline void expand(uint64_t bits, const uint64_t* values, uint64_t* weights) {
  const auto kept = static_cast<__mmask8>(bits);
  _mm512_storeu_si512(weights, _mm512_maskz_expandloadu_epi64(kept, values));
}

// Takes the same time however many are kept.
template <typename Item>
[[gnu::always_inline]] inline void decompress_vectors(const DecompressArgs& args, int64_t begin,
                                                      int64_t end) {
  constexpr int kLanes = 64 / sizeof(Item);
  const Item* values = static_cast<const Item*>(args.values);
  Item* weights = static_cast<Item*>(args.weights);
  for (; begin + 64 <= end; begin += 64, weights += 64) {
    uint64_t bits = bits_at(args.bitmap, begin, end);
#pragma GCC unroll 8
    for (int lane = 0; lane < 64; lane += kLanes, bits >>= kLanes) {
      expand(bits, values, weights + lane);
      values += __builtin_popcountll(bits & ((uint64_t{1} << kLanes) - 1));
    }
  }
  scatter(args.bitmap, values, weights, begin, end);
}

SIMMIM_TARGET_AVX512_BF16 void decompress_halves(const DecompressArgs& args, int64_t begin,
                                                 int64_t end) {
  decompress_vectors<uint16_t>(args, begin, end);
}
SIMMIM_TARGET_AVX512 void decompress_floats(const DecompressArgs& args, int64_t begin,
                                            int64_t end) {
  decompress_vectors<uint32_t>(args, begin, end);
}
SIMMIM_TARGET_AVX512 void decompress_doubles(const DecompressArgs& args, int64_t begin,
                                             int64_t end) {
  decompress_vectors<uint64_t>(args, begin, end);
}
SIMMIM_TARGET_AVX2 int64_t count_kept_avx2(const uint8_t* bitmap, int64_t begin, int64_t end) {
  return count_kept(bitmap, begin, end);
}
#endif

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
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx2) return count_kept_avx2(bitmap, begin, end);
#endif
  return count_kept(bitmap, begin, end);
}

void decompress_cpu(const DecompressArgs& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  const CpuCapability capability = cpu_capability();
  if (capability >= CpuCapability::avx512 && args.item_size == 4) {
    return decompress_floats(args, begin, end);
  }
  if (capability >= CpuCapability::avx512 && args.item_size == 8) {
    return decompress_doubles(args, begin, end);
  }
  if (capability >= CpuCapability::avx512_bf16 && args.item_size == 2) {
    return decompress_halves(args, begin, end);
  }
#endif
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

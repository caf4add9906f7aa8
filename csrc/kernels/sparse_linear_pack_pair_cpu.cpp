// Packs x for the pair layout.
#include <algorithm>

#include "cpu_capability.h"
#include "float_vector.h"
#include "half.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// Columns of a tile of x: rows of samples, x_stride apart.
template <typename Input>
struct Columns {
  const Input* x;
  int64_t x_stride, samples, count;
};

BFloat16 rounded(float value) { return to_bfloat16(value); }
BFloat16 rounded(BFloat16 value) { return value; }

// -> items [count, kPairLanes], 0 beyond the samples.
template <typename Input>
void pack_columns(const Columns<Input>& columns, BFloat16* items) {
  for (int64_t c = 0; c < columns.count; ++c) {
    for (int64_t item = 0; item < kPairLanes; ++item) {
      const int64_t s = pair_sample(item);
      *items++ = s < columns.samples ? rounded(columns.x[s * columns.x_stride + c]) : BFloat16{};
    }
  }
}

#if defined(__x86_64__)
constexpr int64_t kVector = 16;  // floats

SIMMIM_TARGET_AVX512_BF16 inline Vec<kVector> load_some(const float* x, __mmask16 count) {
  return reinterpret_cast<Vec<kVector>>(_mm512_maskz_loadu_ps(count, x));
}
SIMMIM_TARGET_AVX512_BF16 inline Vec<kVector> load_some(const BFloat16* x, __mmask16 count) {
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(count, _mm256_maskz_loadu_epi16(count, x));
  return reinterpret_cast<Vec<kVector>>(_mm512_maskz_slli_epi32(0xffff, bits, 16));
}

template <typename Input>
SIMMIM_TARGET_AVX512_BF16 void pack_columns_avx512(const Columns<Input>& columns, BFloat16* items) {
  constexpr int64_t kBlocks = kPairLanes / kVector;
  static_assert(kBlocks == 2);
  alignas(64) uint16_t samples[kPairLanes];
  for (int64_t i = 0; i < kPairLanes; ++i) samples[i] = static_cast<uint16_t>(pair_sample(i));
  const __m512i order = _mm512_load_si512(samples);
  for (int64_t first = 0; first < columns.count; first += kVector) {
    const int64_t count = std::min(kVector, columns.count - first);
    const auto some = static_cast<__mmask16>((1u << count) - 1);
    Vec<kVector> blocks[kBlocks][kVector];
    for (int64_t block = 0; block < kBlocks; ++block) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVector; ++i) {
        const int64_t s = block * kVector + i;
        const Input* row = columns.x + s * columns.x_stride + first;
        blocks[block][i] = s < columns.samples ? load_some(row, some) : Vec<kVector>{};
      }
      transpose<kVector>(blocks[block]);
    }
    for (int64_t i = 0; i < count; ++i, items += kPairLanes) {
      const __m512bh column = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(blocks[1][i]),
                                                  reinterpret_cast<__m512>(blocks[0][i]));
      _mm512_store_si512(items, _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(column)));
    }
  }
}
#endif

template <typename Input>
void pack(const PackTilesArgs& args, int64_t begin, int64_t end) {
  auto pack_tile = pack_columns<Input>;
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512_bf16) pack_tile = pack_columns_avx512<Input>;
#endif
  const int64_t column_tiles = divide_up(args.in_features, kPairColumns);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t sample = tile / column_tiles * kPairLanes;
    const int64_t column = tile % column_tiles * kPairColumns;
    const Columns<Input> columns{
        static_cast<const Input*>(args.x) + sample * args.in_features + column, args.in_features,
        std::min(kPairLanes, args.batch - sample),
        std::min(kPairColumns, args.in_features - column)};
    auto* items = reinterpret_cast<BFloat16*>(args.tiles) +
                  tile * packed_tile_items(kPairColumns, kPairLanes);
    pack_tile(columns, items);
    std::fill_n(items + kPairColumns * kPairLanes, kPairLanes, BFloat16{});
  }
}

}  // namespace

void pack_pairs_cpu(const PackTilesArgs& args, int64_t begin, int64_t end) {
  args.is_bfloat16 ? pack<BFloat16>(args, begin, end) : pack<float>(args, begin, end);
}

}  // namespace simmim

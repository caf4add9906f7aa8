// The pair layout: what the element layout does, in bfloat16 with float32 sums. vdpbf16ps adds the
// products of two weights with a sample at a time, so that the columns of two weights are
// interleaved as they are read.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu_capability.h"
#include "float_vector.h"
#include "half.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

using PairWeight = ElementWeight<BFloat16, 2>;

using Outputs = OutputTile<kPairLanes>;

void multiply_tile(const PairWeight& weight, const ElementTile& tile, const BFloat16* x,
                   Outputs& y) {
  const BFloat16* value = weight.values + tile.first_weight;
  const uint8_t* column = weight.columns + tile.first_weight;
  const uint16_t* rows = weight.rows + tile.first_row;
  for (int64_t run = tile.first_run; run < tile.end_run; ++run) {
    for (int64_t group = 0; group < weight.runs[run].groups; ++group, rows += kGroupRows) {
      for (int64_t i = 0; i < weight.runs[run].count * kGroupRows * 2; ++i, ++value, ++column) {
        float* sums = y.rows[rows[i / 2 % kGroupRows]];
        const BFloat16* inputs = x + *column * kPairLanes;
        for (int64_t item = 0; item < kPairLanes; ++item) {
          sums[pair_sample(item)] += *value * inputs[item];
        }
      }
    }
  }
}

// Writes `rows` outputs of `samples` samples to y, whose rows lie y_stride apart.
template <typename Output>
void write(Outputs& outputs, int64_t rows, int64_t samples, Output* y, int64_t y_stride) {
  transpose_into<4>(outputs.rows[0], kPairLanes, rows, samples, outputs.samples[0], kTileRows,
                    rows);
  for (int64_t s = 0; s < samples; ++s, y += y_stride) {
    if constexpr (std::is_same_v<Output, float>) {
      std::copy_n(outputs.samples[s], rows, y);
    } else {
      std::transform(outputs.samples[s], outputs.samples[s] + rows, y, to_bfloat16);
    }
  }
}

#if defined(__x86_64__)
constexpr int64_t kVector = 16;  // floats

// A group's next pairs of weights, all rows', over and over.
SIMMIM_TARGET_AVX512_BF16 inline __m512i load_weights(const BFloat16* values) {
  static_assert(kGroupRows == 4);
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  // Masked by nothing: gcc 12 warns of the plain broadcast's own undefined value.
  return _mm512_maskz_broadcast_i32x4(0xffff, pairs);
}

// The pair of row r, in all lanes.
template <int r>
SIMMIM_TARGET_AVX512_BF16 inline __m512bh broadcast_row(__m512i weights) {
  constexpr auto kRow = static_cast<_MM_PERM_ENUM>(r * 0b01010101);
  return reinterpret_cast<__m512bh>(_mm512_maskz_shuffle_epi32(0xffff, weights, kRow));
}

constexpr int kVectors = kPairLanes / kVector;

// Row r's next pair, whose columns are the bytes 2 r and 2 r + 1 of `from`.
template <int r>
SIMMIM_TARGET_AVX512_BF16 inline void add_row(__m512i weights, const BFloat16* x, uint64_t from,
                                              __m512 (&sums)[kVectors]) {
  const __m512bh row = broadcast_row<r>(weights);
  const __m512i first = _mm512_load_si512(x + (from >> 16 * r & 0xff) * kPairLanes);
  const __m512i second = _mm512_load_si512(x + (from >> (16 * r + 8) & 0xff) * kPairLanes);
  const auto low = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(first, second));
  const auto high = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(first, second));
  sums[0] = _mm512_dpbf16_ps(sums[0], low, row);
  sums[1] = _mm512_dpbf16_ps(sums[1], high, row);
}

SIMMIM_TARGET_AVX512_BF16 void multiply_tile_avx512(const PairWeight& weight,
                                                    const ElementTile& tile, const BFloat16* x,
                                                    Outputs& y) {
  const BFloat16* values = weight.values + tile.first_weight;
  const uint8_t* columns = weight.columns + tile.first_weight;
  const uint16_t* rows = weight.rows + tile.first_row;
  for (int64_t run = tile.first_run; run < tile.end_run; ++run) {
    for (int64_t group = 0; group < weight.runs[run].groups; ++group, rows += kGroupRows) {
      __m512 sums[kGroupRows][kVectors];
#pragma GCC unroll 4
      for (int r = 0; r < kGroupRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = _mm512_load_ps(y.rows[rows[r]] + v * kVector);
        }
      }
      for (int64_t i = 0; i < weight.runs[run].count; ++i) {
        uint64_t from;  // the columns of the rows' pairs, a byte each
        std::memcpy(&from, columns, sizeof from);
        const __m512i weights = load_weights(values);
        add_row<0>(weights, x, from, sums[0]);
        add_row<1>(weights, x, from, sums[1]);
        add_row<2>(weights, x, from, sums[2]);
        add_row<3>(weights, x, from, sums[3]);
        values += 2 * kGroupRows;
        columns += 2 * kGroupRows;
      }
#pragma GCC unroll 4
      for (int r = 0; r < kGroupRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          _mm512_store_ps(y.rows[rows[r]] + v * kVector, sums[r][v]);
        }
      }
    }
  }
}

SIMMIM_TARGET_AVX512_BF16 inline void store(__m512 value, __mmask16 some, float* y) {
  _mm512_mask_storeu_ps(y, some, value);
}
SIMMIM_TARGET_AVX512_BF16 inline void store(__m512 value, __mmask16 some, BFloat16* y) {
  _mm256_mask_storeu_epi16(y, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

template <typename Output>
SIMMIM_TARGET_AVX512_BF16 void write_avx512(Outputs& outputs, int64_t rows, int64_t samples,
                                            Output* y, int64_t y_stride) {
  transpose_into<kVector>(outputs.rows[0], kPairLanes, kTileRows, kPairLanes, outputs.samples[0],
                          kTileRows, kTileRows);
  for (int64_t s = 0; s < samples; ++s, y += y_stride) {
    for (int64_t row = 0; row < rows; row += kVector) {
      const auto some = static_cast<__mmask16>((1u << std::min(rows - row, kVector)) - 1);
      store(_mm512_load_ps(outputs.samples[s] + row), some, y + row);
    }
  }
}
#endif

template <typename Output>
void run(const TileLinearArgs& args, int64_t begin, int64_t end) {
  auto multiply = multiply_tile;
  auto write_outputs = write<Output>;
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512_bf16) {
    multiply = multiply_tile_avx512;
    write_outputs = write_avx512<Output>;
  }
#endif
  constexpr int64_t kItems = packed_tile_items(kPairColumns, kPairLanes);
  const Packed packed(args.packed);
  const PairWeight weight = packed.element<BFloat16, 2>();
  const int64_t out_features = packed.header().out_features;
  const int64_t row_blocks = divide_up(out_features, kTileRows);
  const int64_t column_tiles = divide_up(packed.header().in_features, kPairColumns);
  const std::unique_ptr<Outputs> y(new Outputs);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % row_blocks, batch_tile = task / row_blocks;
    const int64_t first_row = block * kTileRows, first_sample = batch_tile * kPairLanes;
    const int64_t rows = std::min(kTileRows, out_features - first_row);
    for (int64_t row = 0; row < rows; ++row) {
      const float bias = args.bias == nullptr ? 0.0f : args.bias[first_row + row];
      std::fill_n(y->rows[row], kPairLanes, bias);
    }
    const auto* x = reinterpret_cast<const BFloat16*>(args.x) + batch_tile * column_tiles * kItems;
    for (int64_t tile = 0; tile < column_tiles; ++tile, x += kItems) {
      multiply(weight, weight.tiles[block * column_tiles + tile], x, *y);
    }
    write_outputs(*y, rows, std::min(kPairLanes, args.batch - first_sample),
                  static_cast<Output*>(args.y) + first_sample * out_features + first_row,
                  out_features);
  }
}

}  // namespace

void pair_linear_cpu(const TileLinearArgs& args, int64_t begin, int64_t end) {
  args.is_bfloat16 ? run<BFloat16>(args, begin, end) : run<float>(args, begin, end);
}

}  // namespace simmim

// Part of sparse_linear_tile_cpu.cpp: products of tiles of x with tiles of weights on x86.
//
// A tile of x is [kTileSamples, kTileInputs], one of weights [2, kTileInputs / 2, 32 items]; sums
// are [samples, kTileOutputs]. Tiles of the same samples, and of weights, follow each other.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu_capability.h"
#include "sparse_linear.h"

namespace simmim {

constexpr int64_t kRowItems = 32;  // bfloat16 items of a vector
constexpr int64_t kHalfRows = kTileInputs / 2;
constexpr int64_t kHalfItems = kHalfRows * kRowItems;
constexpr int64_t kInputItems = kTileSamples * kTileInputs;

// Expands rows of weights; returns the values that follow.
SIMMIM_TARGET_AVX512_BF16 inline const uint16_t* expand_rows(const uint32_t* masks,
                                                             const uint16_t* values, int64_t rows,
                                                             uint16_t* weights) {
  for (int64_t row = 0; row < rows; ++row, weights += kRowItems) {
    const __m512i next = _mm512_loadu_si512(values);
    _mm512_store_si512(weights, _mm512_maskz_expand_epi16(masks[row], next));
    values += __builtin_popcount(masks[row]);
  }
  return values;
}

// ---------------------------------------------------------------------------------------- AMX

// Eight tiles of 16 rows of 64 bytes, until they are released.
SIMMIM_TARGET_AMX inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("" : : "r"(&config) : "memory");  // the compiler does not see that it is read
  _tile_loadconfig(&config);
}

SIMMIM_TARGET_AMX inline void release_tiles() { _tile_release(); }

// Adds to the sums of 16 samples, or with `both` of 32 whose tiles of x lie x_stride apart; with
// `begins` the sums begin at 0.
template <bool both>
SIMMIM_TARGET_AMX void multiply_tiles(const uint16_t* x, int64_t x_stride, const uint16_t* weights,
                                      int64_t tiles, bool begins, float* sums) {
  constexpr int64_t kBytes = 64, kSumBytes = kTileOutputs * sizeof(float);
  float* const sums_1 = sums + kTileOutputs / 2;
  float* const sums_2 = sums + kTileSamples * kTileOutputs;
  float* const sums_3 = sums_2 + kTileOutputs / 2;
  // Tiles 0 to 3 are sums, 4 and 5 are of x, 6 and 7 of weights.
  if (begins) {
    _tile_zero(0);
    _tile_zero(1);
    if (both) _tile_zero(2);
    if (both) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kSumBytes);
    _tile_loadd(1, sums_1, kSumBytes);
    if (both) _tile_loadd(2, sums_2, kSumBytes);
    if (both) _tile_loadd(3, sums_3, kSumBytes);
  }
  for (int64_t tile = 0; tile < tiles; ++tile, x += kInputItems, weights += 2 * kHalfItems) {
    _tile_loadd(4, x, kBytes);
    _tile_loadd(6, weights, kBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + kHalfItems, kBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (both) _tile_loadd(5, x + x_stride, kBytes);
    if (both) _tile_dpbf16ps(2, 5, 6);
    if (both) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums_1, kSumBytes);
  if (both) _tile_stored(2, sums_2, kSumBytes);
  if (both) _tile_stored(3, sums_3, kSumBytes);
}

// ---------------------------------------------------------------------------------- vdpbf16ps

SIMMIM_TARGET_AVX512_BF16 inline __m512bh broadcast_pair(const uint16_t* pair) {
  int bits;
  std::memcpy(&bits, pair, sizeof bits);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
}

SIMMIM_TARGET_AVX512_BF16 inline __m512bh load_items(const uint16_t* items) {
  return reinterpret_cast<__m512bh>(_mm512_load_si512(items));
}

// Adds to the sums of kRowSamples samples, rows of one tile of x; with `begins` they begin at 0.
constexpr int kRowSamples = 8;
SIMMIM_TARGET_AVX512_BF16 inline void multiply_rows(const uint16_t* x, const uint16_t* weights,
                                                    int64_t tiles, bool begins, float* sums) {
  __m512 totals[kRowSamples][2];
#pragma GCC unroll 8
  for (int s = 0; s < kRowSamples; ++s) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const float* sum = sums + s * kTileOutputs + half * kTileOutputs / 2;
      totals[s][half] = begins ? _mm512_setzero_ps() : _mm512_load_ps(sum);
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile, x += kInputItems, weights += 2 * kHalfItems) {
    for (int64_t row = 0; row < kHalfRows; ++row) {
      const __m512bh first = load_items(weights + row * kRowItems);
      const __m512bh second = load_items(weights + row * kRowItems + kHalfItems);
#pragma GCC unroll 8
      for (int s = 0; s < kRowSamples; ++s) {
        const __m512bh inputs = broadcast_pair(x + s * kTileInputs + 2 * row);
        totals[s][0] = _mm512_dpbf16_ps(totals[s][0], first, inputs);
        totals[s][1] = _mm512_dpbf16_ps(totals[s][1], second, inputs);
      }
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < kRowSamples; ++s) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      _mm512_store_ps(sums + s * kTileOutputs + half * kTileOutputs / 2, totals[s][half]);
    }
  }
}

// The sums of few samples over all their tiles, with weights expanded in registers.
template <int samples>
SIMMIM_TARGET_AVX512_BF16 void multiply_expanding(const uint32_t* masks, const uint16_t* values,
                                                  const uint16_t* x, int64_t tiles, float* sums) {
  constexpr int kChains = samples == 1 ? 4 : 2;  // of additions that wait for each other
  __m512 totals[samples][2][kChains] = {};
  for (int64_t tile = 0; tile < tiles; ++tile, x += kInputItems) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      for (int64_t row = 0; row < kHalfRows; row += kChains, masks += kChains) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) {
          const __m512i next = _mm512_loadu_si512(values);
          const auto weights =
              reinterpret_cast<__m512bh>(_mm512_maskz_expand_epi16(masks[c], next));
          values += __builtin_popcount(masks[c]);
#pragma GCC unroll 4
          for (int s = 0; s < samples; ++s) {
            totals[s][half][c] = _mm512_dpbf16_ps(
                totals[s][half][c], weights, broadcast_pair(x + s * kTileInputs + 2 * (row + c)));
          }
        }
      }
    }
  }
  for (int s = 0; s < samples; ++s) {
    for (int half = 0; half < 2; ++half) {
      __m512 total = totals[s][half][0];
      for (int c = 1; c < kChains; ++c) total = _mm512_add_ps(total, totals[s][half][c]);
      _mm512_store_ps(sums + s * kTileOutputs + half * kTileOutputs / 2, total);
    }
  }
}

// y [outputs] = sums + bias, both [kTileOutputs], as float or BFloat16. Returns whether all sums
// are finite.
template <typename Output>
SIMMIM_TARGET_AVX512_BF16 bool add_bias(const float* sums, const float* bias, int64_t outputs,
                                        Output* y) {
  constexpr int kNanOrInfinity = 0x99, kHalf = kTileOutputs / 2;
  const auto lanes = static_cast<__mmask32>((uint64_t{1} << outputs) - 1);
  const __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + kHalf);
  const __m512 first = _mm512_add_ps(low, _mm512_loadu_ps(bias));
  const __m512 second = _mm512_add_ps(high, _mm512_loadu_ps(bias + kHalf));
  if constexpr (std::is_same_v<Output, float>) {
    _mm512_mask_storeu_ps(y, static_cast<__mmask16>(lanes), first);
    _mm512_mask_storeu_ps(y + kHalf, static_cast<__mmask16>(lanes >> kHalf), second);
  } else {
    const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    _mm512_mask_storeu_epi16(y, lanes, rounded);
  }
  return (_mm512_fpclass_ps_mask(low, kNanOrInfinity) |
          _mm512_fpclass_ps_mask(high, kNanOrInfinity)) == 0;
}

}  // namespace simmim

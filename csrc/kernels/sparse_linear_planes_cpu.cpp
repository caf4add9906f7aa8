#include <algorithm>
#include <iterator>
#include <memory>

#include "cpu_capability.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// The sums of a group for one sample. Idle lanes see nothing of x.
void group_sums(const PlanesWeight& weight, int64_t group, const float* x, float* sums) {
  std::fill_n(sums, kPlanesRows, 0.0f);
  for (int64_t step = weight.first[group]; step < weight.first[group + 1]; ++step) {
    const float* window = x + weight.windows[step] * kPlanesColumns;
    const uint8_t* offsets = weight.offsets + step * kPlanesRows;
    const float* values = weight.values + step * kPlanesRows;
    for (int64_t lane = 0; lane < kPlanesRows; ++lane) {
      const uint8_t offset = offsets[planes_byte(lane)];
      if (offset & kTaken) sums[lane] += values[lane] * window[offset - kTaken];
    }
  }
}

#if defined(__x86_64__)
constexpr int64_t kVector = 16;  // floats
constexpr int kVectors = kPlanesRows / kVector;

// Columns of x, of which a window takes two. A permutation sees two vectors, 32 floats or 128
// bytes: so the floats' bytes lie in planes, are looked up plane by plane, and unpacked.
struct alignas(64) Columns {
  uint8_t planes[sizeof(float)][kPlanesColumns];
};

SIMMIM_TARGET_AVX512_BF16 void split(const float* x, int64_t count, Columns* columns) {
  for (int64_t i = 0; i < kPlanesColumns; i += kVector) {
    const auto left = static_cast<int>(std::clamp<int64_t>(count - i, 0, kVector));
    const __m512i floats = _mm512_maskz_loadu_epi32((1 << left) - 1, x + i);
#pragma GCC unroll 4
    for (int plane = 0; plane < 4; ++plane) {
      // Masked by nothing: gcc 12 warns of the plain conversion's own undefined value.
      const __m512i shifted = _mm512_maskz_srli_epi32(0xffff, floats, 8 * plane);
      _mm512_mask_cvtepi32_storeu_epi8(columns->planes[plane] + i, 0xffff, shifted);
    }
  }
}

SIMMIM_TARGET_AVX512_BF16 inline __m512i look_up(const Columns* window, int plane,
                                                 __m512i offsets) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(window[0].planes[plane]), offsets,
                                  _mm512_load_si512(window[1].planes[plane]));
}

// What the lanes of a step see of x.
SIMMIM_TARGET_AVX512_BF16 inline void look_up_inputs(const Columns* window, __m512i offsets,
                                                     __m512 (&inputs)[kVectors]) {
  const __m512i a = look_up(window, 0, offsets), b = look_up(window, 1, offsets);
  const __m512i c = look_up(window, 2, offsets), d = look_up(window, 3, offsets);
  const __m512i low[] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
  const __m512i high[] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    inputs[2 * half] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[half], high[half]));
    inputs[2 * half + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[half], high[half]));
  }
}

// The sums of a group for `batch` samples that lie x_stride apart, idle lanes multiplying some x by
// 0. Returns whether all are finite: such a lane may have met an infinity or NaN.
template <int batch>
SIMMIM_TARGET_AVX512_BF16 bool group_sums_avx512(const PlanesWeight& weight, int64_t group,
                                                 const Columns* x, int64_t x_stride,
                                                 float (*sums)[kPlanesRows]) {
  __m512 totals[batch][kVectors];
  for (auto& sample : totals) {
    for (__m512& total : sample) total = _mm512_setzero_ps();
  }
  for (int64_t step = weight.first[group]; step < weight.first[group + 1]; ++step) {
    const __m512i offsets = _mm512_load_si512(weight.offsets + step * kPlanesRows);
    const float* values = weight.values + step * kPlanesRows;
    const Columns* window = x + weight.windows[step];
#pragma GCC unroll 4
    for (int b = 0; b < batch; ++b) {
      __m512 inputs[kVectors];
      look_up_inputs(window + b * x_stride, offsets, inputs);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512 weights = _mm512_load_ps(values + v * kVector);
        totals[b][v] = _mm512_fmadd_ps(weights, inputs[v], totals[b][v]);
      }
    }
  }
  constexpr int kNanOrInfinity = 0x99;
  __mmask16 special = 0;
  for (int b = 0; b < batch; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      special |= _mm512_fpclass_ps_mask(totals[b][v], kNanOrInfinity);
      _mm512_storeu_ps(sums[b] + v * kVector, totals[b][v]);
    }
  }
  return special == 0;
}

void planes_linear_avx512(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  // As many samples as have their sums in registers.
  constexpr decltype(&group_sums_avx512<1>) kSums[] = {group_sums_avx512<1>, group_sums_avx512<2>,
                                                       group_sums_avx512<3>, group_sums_avx512<4>};
  constexpr int64_t kBatch = std::size(kSums);
  const Packed packed(args.packed);
  const PlanesWeight weight = packed.planes();
  const int64_t in_features = packed.header().in_features;
  const int64_t out_features = packed.header().out_features;
  const int64_t stride = std::max<int64_t>(divide_up(in_features, kPlanesColumns), 2);
  const std::unique_ptr<Columns[]> columns(new Columns[args.batch * stride]);  // not made 0
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t i = 0; i < stride; ++i) {
      const int64_t first = std::min(i * kPlanesColumns, in_features);
      split(args.x + b * in_features + first, in_features - first, &columns[b * stride + i]);
    }
  }
  for (int64_t group = begin; group < end; ++group) {
    const int32_t* rows = weight.rows + group * kPlanesRows;
    for (int64_t b = 0; b < args.batch; b += kBatch) {
      float sums[kBatch][kPlanesRows];
      const int64_t samples = std::min(kBatch, args.batch - b);
      const bool finite = kSums[samples - 1](weight, group, &columns[b * stride], stride, sums);
      for (int64_t s = 0; s < samples; ++s) {
        if (!finite) group_sums(weight, group, args.x + (b + s) * in_features, sums[s]);
        write_lanes<kPlanesRows>(args, out_features, rows, b + s, sums[s]);
      }
    }
  }
}
#endif

}  // namespace

void planes_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512_bf16) {
    return planes_linear_avx512(args, begin, end);
  }
#endif
  const Packed packed(args.packed);
  const PlanesWeight weight = packed.planes();
  const auto& header = packed.header();
  for (int64_t group = begin; group < end; ++group) {
    const int32_t* rows = weight.rows + group * kPlanesRows;
    for (int64_t b = 0; b < args.batch; ++b) {
      float sums[kPlanesRows];
      group_sums(weight, group, args.x + b * header.in_features, sums);
      write_lanes<kPlanesRows>(args, header.out_features, rows, b, sums);
    }
  }
}

}  // namespace simmim

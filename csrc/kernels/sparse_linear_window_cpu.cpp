#include <algorithm>
#include <array>
#include <utility>

#include "cpu_capability.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// The sums of a group for one sample. Idle lanes see nothing of x.
void window_sums(const WindowWeight& weight, int64_t group, const float* x, float* sums) {
  std::fill_n(sums, kWindowRows, 0.0f);
  const float* value = weight.values + weight.groups[group].first_value;
  const int64_t end = weight.groups[group + 1].first_step;
  for (int64_t step = weight.groups[group].first_step; step < end; ++step) {
    const float* window = x + weight.windows[step] * kWindowVector;
    const uint8_t* offsets = weight.offsets + step * kWindowRows;
    for (int64_t lane = 0; lane < kWindowRows; ++lane) {
      if (offsets[lane] & kTaken) sums[lane] += *value++ * window[offsets[lane] - kTaken];
    }
  }
}

#if defined(__x86_64__)
// Loads what is used several times. GCC would load it each time, as an operand in memory, but loads
// are what bounds the kernel; an assembler statement, even an empty one, it does not repeat.
SIMMIM_TARGET_AVX512 inline __m512 load_once(const float* p) {
  __m512 value = _mm512_loadu_ps(p);
  asm("" : "+v"(value));
  return value;
}

// The sums of a group for `batch` samples, idle lanes multiplying some x by 0. Returns whether all
// are finite: such a lane may have met an infinity or NaN. Values lie without gaps and are expanded
// here: memory is what the kernel waits for.
template <int batch>
SIMMIM_TARGET_AVX512 bool window_sums_avx512(const WindowWeight& weight, int64_t group,
                                             const float* x, int64_t x_stride,
                                             float (*sums)[kWindowRows]) {
  constexpr int kVectors = kWindowRows / kWindowVector;
  static_assert(kVectors == 2);
  const float* next = weight.values + weight.groups[group].first_value;
  const int64_t end = weight.groups[group + 1].first_step;
  __m512 totals[batch][kVectors];
  for (auto& sample : totals) {
    for (__m512& total : sample) total = _mm512_setzero_ps();
  }
  for (int64_t step = weight.groups[group].first_step; step < end; ++step) {
    const float* window = x + weight.windows[step] * kWindowVector;
    const uint8_t* lanes = weight.offsets + step * kWindowRows;
    __m512i offsets[kVectors];
    __m512 values[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m128i bytes =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes + v * kWindowVector));
      const __mmask16 kept = _mm_movepi8_mask(bytes);
      // Masked by nothing: gcc 12 warns of the plain conversion's own undefined value.
      offsets[v] = _mm512_maskz_cvtepu8_epi32(0xffff, bytes);
      values[v] = _mm512_maskz_expand_ps(kept, load_once(next));
      next += __builtin_popcount(kept);
    }
#pragma GCC unroll 8
    for (int b = 0; b < batch; ++b) {
      const __m512 low = load_once(window + b * x_stride);
      const __m512 high = load_once(window + b * x_stride + kWindowVector);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m512 inputs = _mm512_permutex2var_ps(low, offsets[v], high);
        totals[b][v] = _mm512_fmadd_ps(values[v], inputs, totals[b][v]);
      }
    }
  }
  constexpr int kNanOrInfinity = 0x99;
  __mmask16 special = 0;
  for (int b = 0; b < batch; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      special |= _mm512_fpclass_ps_mask(totals[b][v], kNanOrInfinity);
      _mm512_storeu_ps(sums[b] + v * kWindowVector, totals[b][v]);
    }
  }
  return special == 0;
}
#endif

template <int batch>
void window_group(const WindowWeight& weight, int64_t group, const float* x, int64_t x_stride,
                  float (*sums)[kWindowRows]) {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512) {
    if (window_sums_avx512<batch>(weight, group, x, x_stride, sums)) return;
  }
#endif
  for (int b = 0; b < batch; ++b) window_sums(weight, group, x + b * x_stride, sums[b]);
}

// window_group for 1, 2, ... samples.
template <int... i>
constexpr auto window_groups(std::integer_sequence<int, i...>) {
  return std::array{window_group<i + 1>...};
}

}  // namespace

void window_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  // As many samples as have their sums in registers.
  constexpr int64_t kBatch = 8;
  constexpr auto kGroups = window_groups(std::make_integer_sequence<int, kBatch>());
  const Packed packed(args.packed);
  const WindowWeight weight = packed.window();
  const int64_t out_features = packed.header().out_features;
  const int64_t stride = window_columns(packed.header().in_features);
  for (int64_t group = begin; group < end; ++group) {
    const int32_t* rows = weight.rows + group * kWindowRows;
    for (int64_t b = 0; b < args.batch; b += kBatch) {
      float sums[kBatch][kWindowRows];
      const int64_t samples = std::min(kBatch, args.batch - b);
      kGroups[samples - 1](weight, group, args.x + b * stride, stride, sums);
      for (int64_t s = 0; s < samples; ++s) {
        write_lanes(args, out_features, rows, kWindowRows, b + s, sums[s]);
      }
    }
  }
}

}  // namespace simmim

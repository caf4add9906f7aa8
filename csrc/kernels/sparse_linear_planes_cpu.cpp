#include <algorithm>
#include <memory>

#include "cpu_capability.h"
#include "half.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// The sums of a group for one sample. Idle lanes see nothing of x.
template <typename Value>
void group_sums(const PlanesWeight<Value>& weight, int64_t group, const float* x, float* sums) {
  std::fill_n(sums, kPlanesRows, 0.0f);
  int64_t part = weight.groups[group].first_part;
  const int64_t parts = weight.lanes(group) / kPlanesLanes;
  for (int64_t step = weight.groups[group].first_step; step < weight.groups[group + 1].first_step;
       ++step) {
    const float* window = x + weight.windows[step] * kPlanesStep;
    for (int64_t p = 0; p < parts; ++p, ++part) {
      for (int64_t lane = 0; lane < kPlanesLanes; ++lane) {
        const uint8_t offset = weight.offsets[part * kPlanesLanes + planes_byte(lane)];
        if (!(offset & kTaken)) continue;
        const Value value = weight.values[part * kPlanesLanes + planes_value<Value>(lane)];
        sums[p * kPlanesLanes + lane] += value * window[offset - kTaken];
      }
    }
  }
}

#if defined(__x86_64__)
constexpr int64_t kVector = 16;                   // floats
constexpr int kVectors = kPlanesLanes / kVector;  // of a part

// A permutation sees two vectors, 32 floats or 128 bytes: so the bytes of the floats of a sample
// lie in planes [4, stride], are looked up plane by plane, and unpacked. What is beyond x is 0.
SIMMIM_TARGET_AVX512_BF16 void split(const float* x, int64_t count, int64_t stride,
                                     uint8_t* planes) {
  for (int64_t i = 0; i < stride; i += kVector) {
    const auto left = static_cast<int>(std::clamp<int64_t>(count - i, 0, kVector));
    const __m512i floats = _mm512_maskz_loadu_epi32((1 << left) - 1, x + std::min(i, count));
#pragma GCC unroll 4
    for (int plane = 0; plane < 4; ++plane) {
      // Masked by nothing: gcc 12 warns of the plain conversion's own undefined value.
      const __m512i shifted = _mm512_maskz_srli_epi32(0xffff, floats, 8 * plane);
      _mm512_mask_cvtepi32_storeu_epi8(planes + plane * stride + i, 0xffff, shifted);
    }
  }
}

// Loads what is used several times. GCC would load it each time, as an operand in memory, but loads
// are what bounds the kernel; an assembler statement, even an empty one, it does not repeat.
SIMMIM_TARGET_AVX512_BF16 inline __m512i load_once(const void* p) {
  __m512i value = _mm512_loadu_si512(p);
  asm("" : "+v"(value));
  return value;
}

// A window in registers, which the parts of a step share.
struct Window {
  __m512i low[4], high[4];
};

SIMMIM_TARGET_AVX512_BF16 inline Window load_window(const uint8_t* planes, int64_t stride) {
  constexpr int64_t kHalf = kPlanesColumns / 2;
  Window window;
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; ++plane) {
    window.low[plane] = load_once(planes + plane * stride);
    window.high[plane] = load_once(planes + plane * stride + kHalf);
  }
  return window;
}

// What the lanes of a part see of x.
SIMMIM_TARGET_AVX512_BF16 inline void look_up_inputs(const Window& window, __m512i offsets,
                                                     __m512 (&inputs)[kVectors]) {
  __m512i bytes[4];
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; ++plane) {
    bytes[plane] = _mm512_permutex2var_epi8(window.low[plane], offsets, window.high[plane]);
  }
  const __m512i low[] = {_mm512_unpacklo_epi8(bytes[0], bytes[1]),
                         _mm512_unpackhi_epi8(bytes[0], bytes[1])};
  const __m512i high[] = {_mm512_unpacklo_epi8(bytes[2], bytes[3]),
                          _mm512_unpackhi_epi8(bytes[2], bytes[3])};
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    inputs[2 * half] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[half], high[half]));
    inputs[2 * half + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[half], high[half]));
  }
}

SIMMIM_TARGET_AVX512_BF16 inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

SIMMIM_TARGET_AVX512_BF16 inline void load_weights(const float* values,
                                                   __m512 (&weights)[kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_load_ps(values + v * kVector);
}
SIMMIM_TARGET_AVX512_BF16 inline void load_weights(const BFloat16* values,
                                                   __m512 (&weights)[kVectors]) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; v += 2) {
    const __m512i pairs = load_once(values + v * kVector);
    // Masked by nothing: gcc 12 warns of the plain shift's own undefined value.
    weights[v] = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, pairs, 16));
    weights[v + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
  }
}

// The sums of a group of `parts` for `batch` samples, whose planes are x, idle lanes multiplying
// some x by 0. Returns whether all are finite: such a lane may have met an infinity or NaN.
template <int batch, int parts, typename Value>
SIMMIM_TARGET_AVX512_BF16 bool group_sums_avx512(const PlanesWeight<Value>& weight, int64_t group,
                                                 const uint8_t* x, int64_t stride,
                                                 float (*sums)[kPlanesRows]) {
  constexpr int64_t kAhead = 16 * kPlanesLanes;  // so far that the kernel waits for no cache
  __m512 totals[batch][parts][kVectors];
  for (auto& sample : totals) {
    for (auto& part : sample) {
      for (__m512& total : part) total = _mm512_setzero_ps();
    }
  }
  const PlanesGroup first = weight.groups[group];
  const uint8_t* offsets = weight.offsets + first.first_part * kPlanesLanes;
  const Value* values = weight.values + first.first_part * kPlanesLanes;
  const int64_t end = weight.groups[group + 1].first_step;
  for (int64_t step = first.first_step; step < end; ++step) {
#pragma GCC unroll 2
    for (int b = 0; b < batch; ++b) {
      const Window window =
          load_window(x + b * 4 * stride + weight.windows[step] * kPlanesStep, stride);
#pragma GCC unroll 2
      for (int part = 0; part < parts; ++part) {
        const uint8_t* lanes = offsets + part * kPlanesLanes;
        const Value* stored = values + part * kPlanesLanes;
        __m512 inputs[kVectors], weights[kVectors];
        look_up_inputs(window, _mm512_load_si512(lanes), inputs);
        load_weights(stored, weights);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          totals[b][part][v] = _mm512_fmadd_ps(weights[v], inputs[v], totals[b][part][v]);
        }
        if (b > 0) continue;
        prefetch(lanes + kAhead);
#pragma GCC unroll 4
        for (size_t i = 0; i < kPlanesLanes; i += 64 / sizeof(Value)) prefetch(stored + kAhead + i);
      }
    }
    offsets += parts * kPlanesLanes;
    values += parts * kPlanesLanes;
  }
  constexpr int kNanOrInfinity = 0x99;
  __mmask16 special = 0;
  for (int b = 0; b < batch; ++b) {
    for (int v = 0; v < parts * kVectors; ++v) {
      const __m512 total = totals[b][v / kVectors][v % kVectors];
      special |= _mm512_fpclass_ps_mask(total, kNanOrInfinity);
      _mm512_storeu_ps(sums[b] + v * kVector, total);
    }
  }
  return special == 0;
}

template <typename Value>
void planes_linear_avx512(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  // [parts - 1][samples - 1], as many as have their sums in registers beside a window.
  constexpr int64_t kBatch = 2;
  constexpr decltype(&group_sums_avx512<1, 1, Value>) kSums[][kBatch] = {
      {group_sums_avx512<1, 1, Value>, group_sums_avx512<2, 1, Value>},
      {group_sums_avx512<1, 2, Value>, group_sums_avx512<2, 2, Value>}};
  const Packed packed(args.packed);
  const PlanesWeight<Value> weight = packed.planes<Value>();
  const int64_t in_features = packed.header().in_features;
  const int64_t out_features = packed.header().out_features;
  const int64_t beyond = std::max<int64_t>(in_features - kPlanesColumns, 0);
  const int64_t stride = kPlanesColumns + divide_up(beyond, kPlanesStep) * kPlanesStep;
  const std::unique_ptr<uint8_t[]> planes(new uint8_t[args.batch * 4 * stride]);  // not made 0
  for (int64_t b = 0; b < args.batch; ++b) {
    split(args.x + b * in_features, in_features, stride, &planes[b * 4 * stride]);
  }
  for (int64_t group = begin; group < end; ++group) {
    const int32_t* rows = weight.rows + group * kPlanesRows;
    const int64_t lanes = weight.lanes(group);
    for (int64_t b = 0; b < args.batch; b += kBatch) {
      float sums[kBatch][kPlanesRows];
      const int64_t samples = std::min(kBatch, args.batch - b);
      const bool finite = kSums[lanes / kPlanesLanes - 1][samples - 1](
          weight, group, &planes[b * 4 * stride], stride, sums);
      for (int64_t s = 0; s < samples; ++s) {
        if (!finite) group_sums(weight, group, args.x + (b + s) * in_features, sums[s]);
        write_lanes(args, out_features, rows, lanes, b + s, sums[s]);
      }
    }
  }
}
#endif

template <typename Value>
void planes_linear(const SparseLinearArgs& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512_bf16) {
    return planes_linear_avx512<Value>(args, begin, end);
  }
#endif
  const Packed packed(args.packed);
  const PlanesWeight<Value> weight = packed.planes<Value>();
  const auto& header = packed.header();
  for (int64_t group = begin; group < end; ++group) {
    const int32_t* rows = weight.rows + group * kPlanesRows;
    for (int64_t b = 0; b < args.batch; ++b) {
      float sums[kPlanesRows];
      group_sums(weight, group, args.x + b * header.in_features, sums);
      write_lanes(args, header.out_features, rows, kPlanesRows, b, sums);
    }
  }
}

}  // namespace

void planes_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  Packed(args.packed).header().is_bfloat16 ? planes_linear<BFloat16>(args, begin, end)
                                           : planes_linear<float>(args, begin, end);
}

}  // namespace simmim

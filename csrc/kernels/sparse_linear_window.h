// Part of sparse_linear_window_cpu.cpp, for AVX-512 with and, where SIMMIM_VBMI is defined, without
// VBMI: sums of groups of rows.
//
// A permutation of two vectors sees 32 floats, of words 64 and of bytes 128. So x lies in planes:
// its items' lowest bytes (or words), the next ones, ... Each is looked up on its own, and
// unpacking puts the floats together.

#if defined(SIMMIM_VBMI)
using Item = uint8_t;
#else
using Item = uint16_t;
#endif
constexpr int kPlanes = sizeof(float) / sizeof(Item);

// kWindowStep columns of x; a window is two of these.
struct alignas(64) Columns {
  Item planes[kPlanes][kWindowStep];
};

inline void split_columns(const float* x, int64_t count, Columns* columns) {
  for (int64_t i = 0; i < kWindowStep; i += kVector) {
    const int64_t left = std::clamp<int64_t>(count - i, 0, kVector);
    const __m512i items = _mm512_maskz_loadu_epi32((1u << left) - 1, x + i);
#pragma GCC unroll 4
    for (int plane = 0; plane < kPlanes; ++plane) {
      const __m512i shifted = _mm512_maskz_srli_epi32(0xffff, items, 8 * sizeof(Item) * plane);
#if defined(SIMMIM_VBMI)
      _mm512_mask_cvtepi32_storeu_epi8(columns->planes[plane] + i, 0xffff, shifted);
#else
      _mm512_mask_cvtepi32_storeu_epi16(columns->planes[plane] + i, 0xffff, shifted);
#endif
    }
  }
}

// A window's items of one plane, for the lanes whose offsets are given.
#if defined(SIMMIM_VBMI)
inline __m512i look_up(const Columns* window, int plane, __m512i offsets) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(window[0].planes[plane]), offsets,
                                  _mm512_load_si512(window[1].planes[plane]));
}
#else
inline __m512i look_up(const Columns* window, int plane, __m512i offsets) {
  const auto half = [&](const Columns& columns) {
    const Item* items = columns.planes[plane];
    return _mm512_permutex2var_epi16(_mm512_load_si512(items), offsets,
                                     _mm512_load_si512(items + kWindowStep / 2));
  };
  const __mmask32 second = _mm512_test_epi16_mask(offsets, _mm512_set1_epi16(kWindowStep));
  return _mm512_mask_blend_epi16(second, half(window[0]), half(window[1]));
}
#endif

// What the lanes of a step see of x.
inline void look_up_inputs(const Columns* window, __m512i offsets, __m512 (&inputs)[kVectors]) {
#if defined(SIMMIM_VBMI)
  const __m512i a = look_up(window, 0, offsets), b = look_up(window, 1, offsets);
  const __m512i c = look_up(window, 2, offsets), d = look_up(window, 3, offsets);
  const __m512i low[] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
  const __m512i high[] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
#else
  const __m512i zero = _mm512_setzero_si512();
  const __m512i words[] = {_mm512_unpacklo_epi8(offsets, zero),
                           _mm512_unpackhi_epi8(offsets, zero)};
  const __m512i low[] = {look_up(window, 0, words[0]), look_up(window, 0, words[1])};
  const __m512i high[] = {look_up(window, 1, words[0]), look_up(window, 1, words[1])};
#endif
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    inputs[2 * half] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[half], high[half]));
    inputs[2 * half + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[half], high[half]));
  }
}

// The sums of a group for `batch` samples that lie x_stride apart, idle lanes multiplying some x by
// 0. Returns whether all are finite: such a lane may have met an infinity or NaN.
template <int batch>
bool group_sums(const WindowWeight& weight, int64_t group, const Columns* x, int64_t x_stride,
                float (*sums)[kWindowRows]) {
  __m512 totals[batch][kVectors];
  for (auto& sample : totals) {
    for (__m512& total : sample) total = _mm512_setzero_ps();
  }
  for (int64_t step = weight.first[group]; step < weight.first[group + 1]; ++step) {
    const __m512i offsets = _mm512_load_si512(weight.offsets + step * kWindowRows);
    const float* values = weight.values + step * kWindowRows;
#pragma GCC unroll 4
    for (int b = 0; b < batch; ++b) {
      __m512 inputs[kVectors];
      look_up_inputs(x + weight.windows[step] + b * x_stride, offsets, inputs);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        totals[b][v] =
            _mm512_fmadd_ps(_mm512_load_ps(values + v * kVector), inputs[v], totals[b][v]);
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

inline void window_linear(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  const Packed packed(args.packed);
  const WindowWeight weight = packed.window();
  const int64_t in_features = packed.header().in_features;
  const int64_t stride = window_steps(in_features);
  const std::unique_ptr<Columns[]> columns(new Columns[args.batch * stride]);  // not made 0
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t i = 0; i < stride; ++i) {
      const int64_t first = std::min(i * kWindowStep, in_features);
      split_columns(args.x + b * in_features + first, in_features - first,
                    &columns[b * stride + i]);
    }
  }
  constexpr decltype(&group_sums<1>) kSums[] = {group_sums<1>, group_sums<2>, group_sums<3>,
                                                group_sums<4>};
  constexpr int64_t kBatch = std::size(kSums);  // as many as have their sums in registers
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t b = 0; b < args.batch; b += kBatch) {
      float sums[kBatch][kWindowRows];
      const int64_t samples = std::min(kBatch, args.batch - b);
      const bool finite = kSums[samples - 1](weight, group, &columns[b * stride], stride, sums);
      for (int64_t s = 0; s < samples; ++s) {
        if (!finite) reference_sums(weight, group, args.x + (b + s) * in_features, sums[s]);
        write_group(args, weight, group, sums[s], b + s);
      }
    }
  }
}

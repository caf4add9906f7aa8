// Sums over the cells of joint counts, of as many features as a vector has lanes. Part of a kernel:
// see every_target.h.

using Counts = vector_of<uint32_t, kLanes>;
using Terms = vector_of<int64_t, kLanes / 2>;  // of half the lanes

[[gnu::always_inline]] inline bool any(const Counts& mask) {
#if defined(SIMMIM_AVX512)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(SIMMIM_AVX2)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// table[count] of lanes first, first + 1, ...
template <int first>
[[gnu::always_inline]] inline Terms look_up(const int64_t* table, const Counts& count) {
#if defined(SIMMIM_AVX512)
  const __m256i half = _mm512_maskz_extracti64x4_epi64(0xf, (__m512i)count, first / (kLanes / 2));
  return (Terms)_mm512_mask_i32gather_epi64(__m512i{}, 0xff, half, table, 8);
#elif defined(SIMMIM_AVX2)
  const __m128i half = _mm256_extracti128_si256((__m256i)count, first / (kLanes / 2));
  const auto* words = reinterpret_cast<const long long*>(table);
  return (Terms)_mm256_i32gather_epi64(words, half, 8);
#else
  return Terms{table[count[first]], table[count[first + 1]]};
#endif
}

void sum_cells_of_lanes(const EntropyTerms& terms, const JointCounts<uint32_t>& counts,
                        int64_t features, CellSums* sums) {
  constexpr int kHalf = kLanes / 2;
  for (int64_t first = 0; first < features; first += kLanes) {
    const uint32_t* run = counts.of(first);
    Terms low{}, high{};
    Counts observed{};
    for (int64_t r = 0; r < counts.runs; ++r, run += counts.run_stride) {
      for (int32_t bin = 0; bin < counts.bins; ++bin) {
        Counts count;
        memcpy(&count, run + bin * kLanes, sizeof count);
        observed -= (Counts)(count != 0);
        const Counts large = (Counts)(count >= static_cast<uint32_t>(terms.table_size));
        if (__builtin_expect(any(large), false)) {
          for (int lane = 0; lane < kLanes; ++lane) {
            if (large[lane] == 0) continue;
            const int64_t own = compute_term(terms, count[lane]);
            lane < kHalf ? low[lane] += own : high[lane - kHalf] += own;
          }
          count &= ~large;  // the term of 0 is 0
        }
        low += look_up<0>(terms.table, count);
        high += look_up<kHalf>(terms.table, count);
      }
    }
    for (int lane = 0; lane < kLanes && first + lane < features; ++lane) {
      sums[first + lane] = {lane < kHalf ? low[lane] : high[lane - kHalf], observed[lane]};
    }
  }
}

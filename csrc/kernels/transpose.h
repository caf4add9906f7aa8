// Transposes square blocks in vectors. Part of a kernel: see every_target.h.

// The lanes of the lower halves of a and b alternately, or of their upper halves.
template <typename Vector, int... lane>
[[gnu::always_inline]] inline Vector interleave(const Vector& a, const Vector& b, bool upper,
                                                std::integer_sequence<int, lane...>) {
  constexpr int kSize = sizeof...(lane);
#if defined(__clang__)
  return upper ? __builtin_shufflevector(a, b, (kSize / 2 + lane / 2 + lane % 2 * kSize)...)
               : __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * kSize)...);
#else
  return upper ? __builtin_shuffle(a, b, Vector{(kSize / 2 + lane / 2 + lane % 2 * kSize)...})
               : __builtin_shuffle(a, b, Vector{(lane / 2 + lane % 2 * kSize)...});
#endif
}

// Of kSize integer vectors of kSize lanes, in place: log2(kSize) perfect shuffles.
template <int kSize, typename Vector>
[[gnu::always_inline]] inline void transpose(Vector (&rows)[kSize]) {
  constexpr auto lanes = std::make_integer_sequence<int, kSize>();
#pragma GCC unroll 4
  for (int step = 1; step < kSize; step *= 2) {
    Vector shuffled[kSize];
#pragma GCC unroll 8
    for (int i = 0; i < kSize / 2; ++i) {
      shuffled[2 * i] = interleave(rows[i], rows[i + kSize / 2], false, lanes);
      shuffled[2 * i + 1] = interleave(rows[i], rows[i + kSize / 2], true, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) rows[i] = shuffled[i];
  }
}

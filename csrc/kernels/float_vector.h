// Vectors of N floats as one source for every instruction set: N = 4, 8 or 16 becomes SSE2 or
// NEON, AVX2 or AVX-512 in whichever `target` function the templates are inlined into, and a
// vector wider than the machine's is split by the compiler, so every width runs everywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu_capability.h"

namespace simmim {

template <int N>
struct FloatVector {
  typedef float type __attribute__((vector_size(N * sizeof(float))));
  typedef int32_t index __attribute__((vector_size(N * sizeof(int32_t))));
};
template <int N>
using Vec = typename FloatVector<N>::type;

template <int N>
[[gnu::always_inline]] inline Vec<N> load(const float* p) {
  Vec<N> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <int N>
[[gnu::always_inline]] inline void store(float* p, const Vec<N>& v) {
  std::memcpy(p, &v, sizeof v);
}

template <int N>
[[gnu::always_inline]] inline Vec<N> broadcast(float value) {
  // As integers, whose 0 the compiler may leave out: 0.0f + -0.0f is another value than -0.0f.
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const typename FloatVector<N>::index all = typename FloatVector<N>::index{} + bits;
  Vec<N> v;
  std::memcpy(&v, &all, sizeof v);
  return v;
}

// The lanes of a and b alternately: the lower halves' (upper = false) or the upper halves'.
template <int N, int... lane>
[[gnu::always_inline]] inline Vec<N> interleave(const Vec<N>& a, const Vec<N>& b, bool upper,
                                                std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return upper ? __builtin_shufflevector(a, b, (N / 2 + lane / 2 + lane % 2 * N)...)
               : __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * N)...);
#else
  using Index = typename FloatVector<N>::index;
  return upper ? __builtin_shuffle(a, b, Index{(N / 2 + lane / 2 + lane % 2 * N)...})
               : __builtin_shuffle(a, b, Index{(lane / 2 + lane % 2 * N)...});
#endif
}

// Item `item` of each four lanes, in all of these four.
template <int N, int item, int... lane>
[[gnu::always_inline]] inline Vec<N> spread(const Vec<N>& v, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (lane / 4 * 4 + item)...);
#else
  using Index = typename FloatVector<N>::index;
  return __builtin_shuffle(v, Index{(lane / 4 * 4 + item)...});
#endif
}
template <int N, int item>
[[gnu::always_inline]] inline Vec<N> spread_of_quads(const Vec<N>& quads) {
  return spread<N, item>(quads, std::make_integer_sequence<int, N>());
}

// In place transpose of N vectors of N lanes: log2(N) perfect shuffles.
template <int N>
[[gnu::always_inline]] inline void transpose(Vec<N> (&rows)[N]) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  Vec<N> shuffled[N];
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      shuffled[2 * i] = interleave<N>(rows[i], rows[i + N / 2], false, lanes);
      shuffled[2 * i + 1] = interleave<N>(rows[i], rows[i + N / 2], true, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = shuffled[i];
  }
}

// The sum of all lanes, pairwise.
template <int N>
[[gnu::always_inline]] inline float sum(const Vec<N>& v) {
  float lanes[N];
  store<N>(lanes, v);
#pragma GCC unroll 4
  for (int half = N / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// source [rows, columns] -> target [columns, lanes], strides in floats; the lanes from `rows` on
// become 0.
template <int N>
[[gnu::always_inline]] inline void transpose_into(const float* source, int64_t source_stride,
                                                  int64_t rows, int64_t columns, float* target,
                                                  int64_t target_stride, int64_t lanes) {
  const int64_t whole_lanes = lanes / N * N, whole_columns = columns / N * N;
  for (int64_t row = 0; row < whole_lanes; row += N) {
    for (int64_t column = 0; column < whole_columns; column += N) {
      Vec<N> block[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        block[i] = row + i < rows ? load<N>(source + (row + i) * source_stride + column) : Vec<N>{};
      }
      transpose<N>(block);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store<N>(target + (column + i) * target_stride + row, block[i]);
    }
  }
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = column < whole_columns ? whole_lanes : 0; row < lanes; ++row) {
      target[column * target_stride + row] =
          row < rows ? source[row * source_stride + column] : 0.0f;
    }
  }
}

}  // namespace simmim

// Defines the launcher KERNEL_cpu(args, begin, end) of the always_inline template KERNEL<lanes>:
// compiled for each instruction set, chosen at run time.
#if defined(__x86_64__)
#define SIMMIM_VECTOR_LAUNCHER(KERNEL, ARGS)                                                       \
  SIMMIM_TARGET_AVX2 static void KERNEL##_avx2(const ARGS& args, int64_t begin, int64_t end) {     \
    KERNEL<8>(args, begin, end);                                                                   \
  }                                                                                                \
  SIMMIM_TARGET_AVX512 static void KERNEL##_avx512(const ARGS& args, int64_t begin, int64_t end) { \
    KERNEL<16>(args, begin, end);                                                                  \
  }                                                                                                \
  void KERNEL##_cpu(const ARGS& args, int64_t begin, int64_t end) {                                \
    const CpuCapability capability = cpu_capability();                                             \
    if (capability >= CpuCapability::avx512) return KERNEL##_avx512(args, begin, end);             \
    if (capability >= CpuCapability::avx2) return KERNEL##_avx2(args, begin, end);                 \
    KERNEL<4>(args, begin, end);                                                                   \
  }
#else
#define SIMMIM_VECTOR_LAUNCHER(KERNEL, ARGS) \
  void KERNEL##_cpu(const ARGS& args, int64_t begin, int64_t end) { KERNEL<4>(args, begin, end); }
#endif

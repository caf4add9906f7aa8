// The gradient of x, grad W, of few samples: every weight is expanded to a register and used there.
#include <algorithm>
#include <memory>
#include <vector>

#include "bitmap.h"
#include "compressed_linear.h"
#include "cpu_capability.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

#if defined(__x86_64__)
constexpr int kVector = 16;  // floats
constexpr int kVectors = kGradColumns / kVector;
constexpr int64_t kRows = 8;                    // of W, whose weights are in registers at a time
constexpr int64_t kSamples = 16;                // that use them there
constexpr int64_t kColumns = 8 * kGradColumns;  // a tile of sums fits the L1 cache
// Rows of sums a power of two apart would compete for a few lines of it.
constexpr int64_t kStride = kColumns + kVector;

// Adds to sums [samples, kStride] what the columns [column, column + columns) get of all rows,
// whose values in these columns begin at `values` [out_features] and end at `ends`.
SIMMIM_TARGET_AVX512 void add_tile(const InputGradArgs& args, int64_t column, int64_t columns,
                                   const float* grad, int64_t samples, const float* const* values,
                                   const float** ends, float* sums) {
  for (int64_t row = 0; row < args.out_features; row += kRows) {
    const int64_t rows = std::min(kRows, args.out_features - row);
    const float* at[kRows] = {};
    float grads[kSamples][kRows] = {};
    std::copy_n(values + row, rows, at);
    for (int64_t s = 0; s < samples; ++s) {
      std::copy_n(grad + s * args.out_features + row, rows, grads[s]);
    }
    for (int64_t c = 0; c < columns; c += kGradColumns) {
      uint64_t bits[kRows] = {};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t first = (row + r) * args.in_features + column;
        bits[r] = bits_at(args.bitmap, first + c, first + columns);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        __m512 weights[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const auto kept = static_cast<__mmask16>(bits[r] >> v * kVector);
          weights[r] = _mm512_maskz_expandloadu_ps(kept, at[r]);
          at[r] += __builtin_popcount(kept);
        }
        for (int64_t s = 0; s < samples; ++s) {
          float* stored = sums + s * kStride + c + v * kVector;
          __m512 sum = _mm512_load_ps(stored);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            sum = _mm512_fmadd_ps(weights[r], _mm512_set1_ps(grads[s][r]), sum);
          }
          _mm512_store_ps(stored, sum);
        }
      }
    }
    std::copy_n(at, rows, ends + row);
  }
}

struct alignas(64) Sums {
  float values[kSamples * kStride];
};
#endif

}  // namespace

bool has_small_input_grad_cpu() { return cpu_capability() >= CpuCapability::avx512; }

void small_input_grad_cpu(const InputGradArgs& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (begin == end) return;
  const int64_t last = std::min(end * kGradColumns, args.in_features);
  std::vector<const float*> values, ends(args.out_features);
  for (int64_t row = 0; row < args.out_features; ++row) {
    const int64_t weight = row * args.in_features;
    values.push_back(args.values + args.first[row] +
                     count_kept_cpu(args.bitmap, weight, weight + begin * kGradColumns));
  }
  const auto sums = std::make_unique<Sums>();
  for (int64_t column = begin * kGradColumns; column < last; column += kColumns) {
    const int64_t columns = std::min(kColumns, last - column);
    for (int64_t sample = 0; sample < args.batch; sample += kSamples) {
      const int64_t samples = std::min(kSamples, args.batch - sample);
      std::fill_n(sums->values, samples * kStride, 0.0f);
      add_tile(args, column, columns, args.grad + sample * args.out_features, samples,
               values.data(), ends.data(), sums->values);
      for (int64_t s = 0; s < samples; ++s) {
        std::copy_n(sums->values + s * kStride, columns,
                    args.sums + (sample + s) * args.in_features + column);
      }
    }
    values.swap(ends);
  }
#endif
}

}  // namespace simmim

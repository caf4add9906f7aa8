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
void reference_sums(const WindowWeight& weight, int64_t group, const float* x, float* sums) {
  std::fill_n(sums, kWindowRows, 0.0f);
  for (int64_t step = weight.first[group]; step < weight.first[group + 1]; ++step) {
    const float* window = x + weight.windows[step] * kWindowStep;
    const uint8_t* offsets = weight.offsets + step * kWindowRows;
    const float* values = weight.values + step * kWindowRows;
    for (int64_t lane = 0; lane < kWindowRows; ++lane) {
      const uint8_t offset = offsets[window_byte(lane)];
      if (offset & kTaken) sums[lane] += values[lane] * window[offset - kTaken];
    }
  }
}

void write_group(const SparseLinearArgs& args, const WindowWeight& weight, int64_t group,
                 const float* sums, int64_t sample) {
  const int32_t* rows = weight.rows + group * kWindowRows;
  float* y = args.y + sample * Packed(args.packed).header().out_features;
  for (int64_t lane = 0; lane < kWindowRows && rows[lane] >= 0; ++lane) {
    const int32_t row = rows[lane];
    y[row] = sums[lane] + (args.bias == nullptr ? 0.0f : args.bias[row]);
  }
}

#if defined(__x86_64__)
constexpr int64_t kVector = 16;  // floats
constexpr int kVectors = kWindowRows / kVector;

namespace words {
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")
#include "sparse_linear_window.h"
#pragma GCC pop_options
}  // namespace words

namespace bytes {
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")
#define SIMMIM_VBMI
#include "sparse_linear_window.h"
#undef SIMMIM_VBMI
#pragma GCC pop_options
}  // namespace bytes
#endif

}  // namespace

void window_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512_bf16) return bytes::window_linear(args, begin, end);
  if (cpu_capability() >= CpuCapability::avx512) return words::window_linear(args, begin, end);
#endif
  const Packed packed(args.packed);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t b = 0; b < args.batch; ++b) {
      float sums[kWindowRows];
      reference_sums(packed.window(), group, args.x + b * packed.header().in_features, sums);
      write_group(args, packed.window(), group, sums, b);
    }
  }
}

}  // namespace simmim

#include <algorithm>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "binning.h"
#include "cpu_capability.h"
#include "strip.h"
#include "vectors.h"

#define SIMMIM_KERNEL "range_strip.h"
#include "every_target.h"

namespace simmim {

template <typename Stored>
void range_cpu(const RangeArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
               int64_t sample_begin, int64_t sample_end) {
  using Compute = compute_t<Stored>;
  constexpr int64_t kWidth = 512;  // of a strip: its low and high stay in the L1 cache
  constexpr Compute kInfinity = std::numeric_limits<Compute>::infinity();
  const bool fold = args.sample_stride == 1 && args.feature_stride != 1;
  const int64_t width = fold ? 1 : kWidth;
  for (int64_t f = feature_begin; f < feature_end; f += width) {
    const int64_t features = std::min(width, feature_end - f);
    Strip<Stored> strip{args.x + sample_begin * args.sample_stride + f * args.feature_stride,
                        sample_end - sample_begin,
                        features,
                        args.sample_stride,
                        args.feature_stride,
                        nullptr,
                        {},
                        1};
    Compute *low = args.low + f, *high = args.high + f;
    std::fill_n(low, features, kInfinity);
    std::fill_n(high, features, -kInfinity);
    if (fold) {  // samples side by side: rows of as many as there are, then the rest
      Compute lows[kWidth], highs[kWidth];
      std::fill_n(lows, kWidth, kInfinity);
      std::fill_n(highs, kWidth, -kInfinity);
      strip.columns = strip.row_stride = kWidth;
      strip.column_stride = 1;
      strip.rows /= kWidth;
      SIMMIM_BEST_TARGET(widen_range, strip, args.finite, lows, highs);
      strip.x += strip.rows * kWidth;
      strip.columns = (sample_end - sample_begin) % kWidth;
      strip.rows = 1;
      SIMMIM_BEST_TARGET(widen_range, strip, args.finite, lows, highs);
      *low = *std::min_element(lows, lows + kWidth);
      *high = *std::max_element(highs, highs + kWidth);
    } else {
      SIMMIM_BEST_TARGET(widen_range, strip, args.finite, low, high);
    }
  }
}

#define SIMMIM_INSTANTIATE(Stored) \
  template void range_cpu(const RangeArgs<Stored>&, int64_t, int64_t, int64_t, int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

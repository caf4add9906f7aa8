#include <algorithm>
#include <vector>

#include "cpu_capability.h"
#include "histogram.h"

namespace simmim {
namespace {

// Features whose counters (256 bins of 32 bits) stay in the L2 cache while the samples stream past.
constexpr int64_t kFeatureBlock = 64;
// 32-bit counters cannot overflow within so many samples.
constexpr int64_t kSampleBlock = int64_t{1} << 30;

// Each feature has bins + 1 counters, the first for samples without a bin: no branch is needed.
// Bins are found for the whole row first, a loop that vectorises.
template <typename Stored>
[[gnu::always_inline]] inline void count_block(const HistogramArgs<Stored>& args,
                                               int64_t feature_begin, int64_t features,
                                               int64_t sample_begin, int64_t sample_end,
                                               uint32_t* counters) {
  const int32_t stride = args.binning.bins + 1;
  int32_t slots[kFeatureBlock];
  for (int64_t sample = sample_begin; sample < sample_end; ++sample) {
    const Stored* row = args.x + sample * args.sample_stride + feature_begin * args.feature_stride;
    for (int64_t f = 0; f < features; ++f) {
      const int32_t bin = stored_bin(row[f * args.feature_stride], args.binning, feature_begin + f);
      slots[f] = static_cast<int32_t>(f) * stride + 1 + bin;
    }
    for (int64_t f = 0; f < features; ++f) ++counters[slots[f]];
  }
}

#define SIMMIM_COUNT_BLOCK(NAME, TARGET)                                                       \
  template <typename Stored>                                                                   \
  TARGET void NAME(const HistogramArgs<Stored>& args, int64_t feature_begin, int64_t features, \
                   int64_t sample_begin, int64_t sample_end, uint32_t* counters) {             \
    count_block(args, feature_begin, features, sample_begin, sample_end, counters);            \
  }
SIMMIM_COUNT_BLOCK(count_block_portable, )
#if defined(__x86_64__)
SIMMIM_COUNT_BLOCK(count_block_avx2, SIMMIM_TARGET_AVX2)
SIMMIM_COUNT_BLOCK(count_block_avx512, SIMMIM_TARGET_AVX512)
#endif

template <typename Stored>
auto choose_count_block() {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512) return &count_block_avx512<Stored>;
  if (cpu_capability() >= CpuCapability::avx2) return &count_block_avx2<Stored>;
#endif
  return &count_block_portable<Stored>;
}

}  // namespace

template <typename Stored>
void histogram_cpu(const HistogramArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
                   int64_t sample_begin, int64_t sample_end) {
  const auto count = choose_count_block<Stored>();
  const int64_t bins = args.binning.bins;
  std::vector<uint32_t> counters(kFeatureBlock * (bins + 1));
  for (int64_t block = feature_begin; block < feature_end; block += kFeatureBlock) {
    const int64_t features = std::min(kFeatureBlock, feature_end - block);
    for (int64_t begin = sample_begin; begin < sample_end; begin += kSampleBlock) {
      std::fill(counters.begin(), counters.end(), 0);
      count(args, block, features, begin, std::min(begin + kSampleBlock, sample_end),
            counters.data());
      for (int64_t f = 0; f < features; ++f) {
        for (int64_t bin = 0; bin < bins; ++bin) {
          args.counts[(block + f) * bins + bin] += counters[f * (bins + 1) + 1 + bin];
        }
      }
    }
  }
}

#define SIMMIM_INSTANTIATE(Stored) \
  template void histogram_cpu(const HistogramArgs<Stored>&, int64_t, int64_t, int64_t, int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)
SIMMIM_INSTANTIATE(uint8_t)

}  // namespace simmim

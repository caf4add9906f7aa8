// Values are binned a tile at a time, as histogram_cpu has it; a tile is turned while it is in the
// L1 cache, so that both x and the codes are met in the order of memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_capability.h"
#include "discretize.h"
#include "strip.h"
#include "vectors.h"

#define SIMMIM_KERNEL "discretize_strip.h"
#include "every_target.h"

namespace simmim {

template <typename Stored>
int64_t discretize_cpu(const DiscretizeArgs<Stored>& args, int64_t feature_begin,
                       int64_t feature_end, int64_t sample_begin, int64_t sample_end) {
  if (sample_begin == sample_end) return 0;  // whatever the features, whose edges take the time
  constexpr int64_t kRowBytes = 2048;  // of a strip: the rows of two tiles stay in the L2 cache
  const int64_t group = SIMMIM_BEST_TARGET(group_size);
  // Samples side by side: each feature is folded into rows of a group.
  const bool fold = args.sample_stride == 1 && (args.feature_stride != 1 || args.features == 1);
  const int64_t width = fold ? 1 : kRowBytes / int64_t{sizeof(Stored)};
  std::vector<compute_t<Stored>> edge_table(static_cast<size_t>(SIMMIM_BEST_TARGET(
      edge_table_size, args.binning, std::min(width, feature_end - feature_begin))));

  int64_t without_bin = 0;
  for (int64_t f = feature_begin; f < feature_end; f += width) {
    Strip<Stored> strip{args.x + sample_begin * args.sample_stride + f * args.feature_stride,
                        sample_end - sample_begin,
                        std::min(width, feature_end - f),
                        args.sample_stride,
                        args.feature_stride,
                        nullptr,
                        args.binning,
                        fold ? 0 : 1,
                        edge_table.data()};
    if (args.binning.edges != nullptr) {
      strip.binning.edges += f * args.binning.edge_stride;
      SIMMIM_BEST_TARGET(write_edge_table, strip.binning, strip.columns, edge_table.data());
    } else {
      strip.binning.low += f;
      strip.binning.high += f;
      strip.binning.scale += f;
    }
    uint8_t* codes = args.codes + f * args.samples + sample_begin;
    if (!fold) {
      without_bin += SIMMIM_BEST_TARGET(discretize_strip, strip, args.samples, codes);
      continue;
    }
    const int64_t rest = strip.rows % group;
    strip.rows /= group;
    strip.columns = strip.row_stride = group;
    strip.column_stride = 1;
    without_bin += SIMMIM_BEST_TARGET(discretize_strip, strip, args.samples, codes);
    if (rest == 0) continue;
    strip.x += strip.rows * group;
    codes += strip.rows * group;
    strip.rows = 1;
    strip.columns = rest;
    without_bin += SIMMIM_BEST_TARGET(discretize_strip, strip, args.samples, codes);
  }
  return without_bin;
}

#define SIMMIM_INSTANTIATE(Stored)                                                          \
  template int64_t discretize_cpu(const DiscretizeArgs<Stored>&, int64_t, int64_t, int64_t, \
                                  int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

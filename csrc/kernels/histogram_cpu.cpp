// Values are binned a tile at a time; then each bin becomes one bit of a word, and carry-save
// addition counts the bits, so that counting touches no memory but the tile.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_capability.h"
#include "histogram.h"
#include "strip.h"
#include "vectors.h"

#define SIMMIM_KERNEL "histogram_strip.h"
#include "every_target.h"

namespace simmim {
namespace {

// What a strip works on stays in the L2 cache: the sums of its columns, and the rows of two tiles.
// Where sums are small, fewer rows at a time pay for themselves, and rows can be longer: those of
// memory, read as they lie, are best.
constexpr int64_t kSumBytes = 5 * (int64_t{1} << 16);
constexpr int64_t kTileBytes = int64_t{1} << 17;
constexpr int64_t kRowBytes = int64_t{1} << 11, kRowBytesOfSmallSums = int64_t{1} << 14;

template <typename Stored>
void count_strip(const Strip<Stored>& strip, int64_t* counts, CacheLine* workspace) {
  SIMMIM_BEST_TARGET(count_strip, strip, counts, workspace);
}

}  // namespace

template <typename Stored>
void histogram_cpu(const HistogramArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
                   int64_t sample_begin, int64_t sample_end) {
  const int32_t bins = args.binning.bins;
  const int64_t samples = sample_end - sample_begin;
  if (feature_begin == feature_end) return;
  const int64_t group = SIMMIM_BEST_TARGET(group_size);
  // Samples side by side, as the codes of Discretized: each feature is folded into rows of a group.
  const bool fold = args.order == nullptr && args.sample_stride == 1 &&
                    (args.feature_stride != 1 || args.features == 1);
  const int64_t group_bytes = SIMMIM_BEST_TARGET(workspace_bytes, bins);
  const int64_t longest = (bins <= 16 ? kRowBytesOfSmallSums : kRowBytes) / int64_t{sizeof(Stored)};
  const int64_t most = std::min(longest / group, kSumBytes / group_bytes);
  const int64_t all = fold ? 1 : (feature_end - feature_begin + group - 1) / group;
  const int64_t strips = (all + most - 1) / most;
  const int64_t groups = (all + strips - 1) / strips;
  const int64_t width = fold ? 1 : groups * group;
  const int64_t row_bytes = groups * group * int64_t{sizeof(Stored)};
  const auto tile_rows =
      static_cast<int>(std::clamp<int64_t>(kTileBytes / row_bytes, 16, 64) / 16 * 16);
  std::vector<compute_t<Stored>> edge_table(static_cast<size_t>(SIMMIM_BEST_TARGET(
      edge_table_size, args.binning, std::min(width, feature_end - feature_begin))));
  std::vector<CacheLine> workspace((groups * group_bytes + 63) / 64);

  for (int64_t f = feature_begin; f < feature_end; f += width) {
    Strip<Stored> strip{args.x + f * args.feature_stride,
                        samples,
                        std::min(width, feature_end - f),
                        args.sample_stride,
                        args.feature_stride,
                        args.order == nullptr ? nullptr : args.order + sample_begin,
                        args.binning,
                        fold ? 0 : 1,
                        edge_table.data(),
                        tile_rows};
    if (args.order == nullptr) strip.x += sample_begin * args.sample_stride;
    if (args.binning.edges != nullptr) {
      strip.binning.edges += f * args.binning.edge_stride;
      SIMMIM_BEST_TARGET(write_edge_table, strip.binning, strip.columns, edge_table.data());
    } else if (args.binning.low != nullptr) {
      strip.binning.low += f;
      strip.binning.high += f;
      strip.binning.scale += f;
    }
    int64_t* counts = args.counts + f * bins;
    if (!fold) {
      count_strip(strip, counts, workspace.data());
      continue;
    }
    strip.rows = samples / group;
    strip.columns = strip.row_stride = group;
    strip.column_stride = 1;
    count_strip(strip, counts, workspace.data());
    strip.x += strip.rows * group;  // what fills no row
    strip.rows = 1;
    strip.columns = samples % group;
    if (strip.columns != 0) count_strip(strip, counts, workspace.data());
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

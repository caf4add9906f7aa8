#include <algorithm>
#include <cmath>
#include <vector>

#include "discretize.h"

namespace simmim {

// Rows in, columns out: through a tile that stays in the L1 cache.
template <typename Stored>
int64_t discretize_cpu(const DiscretizeArgs<Stored>& args, int64_t feature_begin,
                       int64_t feature_end, int64_t sample_begin, int64_t sample_end) {
  uint8_t tile[kTile][kTile];  // [samples, features]
  int64_t without_bin = 0;
  for (int64_t first = feature_begin; first < feature_end; first += kTile) {
    const int64_t features = std::min(kTile, feature_end - first);
    for (int64_t begin = sample_begin; begin < sample_end; begin += kTile) {
      const int64_t samples = std::min(kTile, sample_end - begin);
      for (int64_t s = 0; s < samples; ++s) {
        const Stored* row = args.x + (begin + s) * args.sample_stride + first * args.feature_stride;
        for (int64_t f = 0; f < features; ++f) {
          const int32_t bin = stored_bin(row[f * args.feature_stride], args.binning, first + f);
          without_bin += bin == kNoBin;
          tile[s][f] = static_cast<uint8_t>(bin);  // kNoBin becomes kInvalidCode
        }
      }
      for (int64_t f = 0; f < features; ++f) {
        uint8_t* codes = args.codes + (first + f) * args.samples + begin;
        for (int64_t s = 0; s < samples; ++s) codes[s] = tile[s][f];
      }
    }
  }
  return without_bin;
}

template <typename Stored>
bool quantile_edges_cpu(const QuantileEdgesArgs<Stored>& args, int64_t feature_begin,
                        int64_t feature_end) {
  using Compute = compute_t<Stored>;
  std::vector<Compute> values;
  bool clean = true;
  for (int64_t feature = feature_begin; feature < feature_end; ++feature) {
    double* edges = args.edges + feature * (args.bins + 1);
    std::fill(edges, edges + args.bins + 1, 0.0);
    values.clear();
    bool bad = false;
    for (int64_t s = 0; s < args.samples; ++s) {
      const auto value =
          static_cast<Compute>(args.x[s * args.sample_stride + feature * args.feature_stride]);
      const bool nan = std::isnan(value), infinite = std::isinf(value);
      bad |= (nan && !args.omit_nan) || (infinite && !args.omit_infinite);
      if (!nan && !infinite) values.push_back(value);
    }
    clean &= !bad;
    if (bad || values.empty()) continue;
    std::sort(values.begin(), values.end());
    const auto last = static_cast<int64_t>(values.size()) - 1;
    for (int64_t k = 0; k <= args.bins; ++k) {
      const int64_t below = k * last / args.bins;  // exact, where k * last / bins in double is not
      const double fraction = static_cast<double>(k * last % args.bins) / args.bins;
      edges[k] = interpolate(values[below], values[std::min(below + 1, last)], fraction);
    }
  }
  return clean;
}

#define SIMMIM_INSTANTIATE(Stored)                                                          \
  template int64_t discretize_cpu(const DiscretizeArgs<Stored>&, int64_t, int64_t, int64_t, \
                                  int64_t);                                                 \
  template bool quantile_edges_cpu(const QuantileEdgesArgs<Stored>&, int64_t, int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

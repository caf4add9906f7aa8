// The quantiles of a few columns at a time, by passes over x: nothing of it is copied but a tile.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_capability.h"
#include "discretize.h"
#include "float_keys.h"
#include "rank_search.h"

#define SIMMIM_KERNEL "key_tile.h"
#include "every_target.h"

namespace simmim {
namespace {

// Edge k lies between the values at k * last / bins and the place after it, both included: the
// places themselves, exactly, where k * last / bins in double is not.
struct Place {
  int64_t below;
  double fraction;
  Place(int64_t k, int64_t last, int64_t bins)
      : below(k * last / bins), fraction(static_cast<double>(k * last % bins) / bins) {}
};

std::vector<int64_t> places_of(int64_t count, int64_t bins) {
  std::vector<int64_t> places;
  for (int64_t k = 0; k <= bins && count > 0; ++k) {
    const int64_t below = Place(k, count - 1, bins).below;
    for (const int64_t place : {below, std::min(below + 1, count - 1)}) {
      if (places.empty() || place > places.back()) places.push_back(place);
    }
  }
  return places;
}

// Whether a column has NaN or infinity that it may not have.
template <typename Stored>
bool has_forbidden(const QuantileEdgesArgs<Stored>& args, int64_t feature) {
  for (int64_t s = 0; s < args.samples; ++s) {
    const auto value = static_cast<compute_t<Stored>>(
        args.x[s * args.sample_stride + feature * args.feature_stride]);
    if (value - value == 0) continue;
    if (value != value ? !args.omit_nan : !args.omit_infinite) return true;
  }
  return false;
}

template <typename Stored>
void interpolate_edges(const RankSearch<KeyOf<Stored>>& search, int64_t bins, double* edges) {
  const auto& places = search.ranks();
  const auto last = static_cast<int64_t>(places.size()) - 1;
  if (last < 0) return;
  const auto value = [&](int64_t i) {
    return static_cast<compute_t<Stored>>(value_of<Stored>(search.found()[i]));
  };
  int64_t at = 0;
  for (int64_t k = 0; k <= bins; ++k) {
    const Place place(k, places[last], bins);
    while (places[at] < place.below) ++at;
    edges[k] = interpolate(value(at), value(std::min(at + 1, last)), place.fraction);
  }
}

}  // namespace

template <typename Stored>
bool quantile_edges_cpu(const QuantileEdgesArgs<Stored>& args, int64_t feature_begin,
                        int64_t feature_end) {
  using Key = KeyOf<Stored>;
  constexpr int64_t kColumns = std::min<int64_t>(kQuantileFeatures, 64 / sizeof(Stored));
  constexpr int64_t kRows = 1024;
  const bool by_column = args.sample_stride == 1 && args.feature_stride != 1;
  std::vector<Key> tile(kRows * kColumns);
  std::vector<RankSearch<Key>> searches(std::min(kColumns, feature_end - feature_begin));
  bool clean = true;
  for (int64_t first = feature_begin; first < feature_end; first += kColumns) {
    const int64_t columns = std::min(kColumns, feature_end - first);
    for (int64_t c = 0; c < columns; ++c) searches[c].start(args.samples);
    const auto seeks = [](const auto& search) { return search.seeks(); };
    while (std::any_of(searches.begin(), searches.begin() + columns, seeks)) {
      for (int64_t begin = 0; begin < args.samples; begin += kRows) {
        const int64_t rows = std::min(kRows, args.samples - begin);
        const Stored* x = args.x + begin * args.sample_stride + first * args.feature_stride;
        if (by_column) {
          SIMMIM_BEST_TARGET(write_keys, x, columns, args.feature_stride, rows, args.sample_stride,
                             kRows, tile.data());
        } else {
          SIMMIM_BEST_TARGET(write_keys, x, rows, args.sample_stride, columns, args.feature_stride,
                             kColumns, tile.data());
        }
        for (int64_t c = 0; c < columns; ++c) {
          if (!searches[c].seeks()) continue;
          searches[c].add(tile.data() + c * (by_column ? kRows : 1), by_column ? 1 : kColumns,
                          rows);
        }
      }
      for (int64_t c = 0; c < columns; ++c) {
        if (!searches[c].seeks()) continue;
        searches[c].end_pass([&](int64_t count) { return places_of(count, args.bins); });
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      double* edges = args.edges + (first + c) * (args.bins + 1);
      std::fill(edges, edges + args.bins + 1, 0.0);
      const bool bad = searches[c].count() < args.samples && has_forbidden(args, first + c);
      clean &= !bad;
      if (!bad) interpolate_edges<Stored>(searches[c], args.bins, edges);
    }
  }
  return clean;
}

#define SIMMIM_INSTANTIATE(Stored) \
  template bool quantile_edges_cpu(const QuantileEdgesArgs<Stored>&, int64_t, int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

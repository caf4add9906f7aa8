// Joint counts of one feature of x with several of y, and the sums that entropies are made of.
#pragma once

#include <cstdint>

#include "entropy.h"

namespace simmim {

// The counts of run r, y bin b and feature f lie at r * run_stride + (f / lanes) * slot_stride +
// b * lanes + f % lanes. A run is one x bin, or one x bin of one group of samples.
template <typename Count>
struct JointCounts {
  const Count* counts;
  int64_t runs;
  int32_t bins;
  int32_t lanes;
  int64_t run_stride;
  int64_t slot_stride;

  const Count* of(int64_t feature) const {
    return counts + feature / lanes * slot_stride + feature % lanes;
  }

  // The counts [runs, bins] of one feature.
  void copy(int64_t feature, int64_t* to) const {
    const Count* from = of(feature);
    for (int64_t run = 0; run < runs; ++run, from += run_stride) {
      for (int32_t bin = 0; bin < bins; ++bin) *to++ = from[bin * lanes];
    }
  }
};

// The sums over all cells of kFeatures features side by side, whose lookups do not wait for each
// other: of the terms, and of the cells that are not empty.
template <int kFeatures, typename Count>
void add_terms(const EntropyTerms& terms, const JointCounts<Count>& counts, int64_t first,
               CellSums* sums) {
  const Count* from = counts.of(first);
  int64_t sum[kFeatures] = {}, observed[kFeatures] = {};
  for (int64_t run = 0; run < counts.runs; ++run, from += counts.run_stride) {
    for (int32_t bin = 0; bin < counts.bins; ++bin) {
      const Count* cell = from + bin * counts.lanes;
      for (int f = 0; f < kFeatures; ++f) {
        sum[f] += term(terms, static_cast<int64_t>(cell[f]));
        observed[f] += cell[f] != 0;
      }
    }
  }
  for (int f = 0; f < kFeatures; ++f) sums[f] = {sum[f], observed[f]};
}

// The same of all features, at most kMostFeatures.
constexpr int kMostFeatures = 64;
template <typename Count>
void sum_cells(const EntropyTerms& terms, const JointCounts<Count>& counts, int64_t features,
               CellSums* sums) {
  int64_t f = 0;
  if (counts.lanes >= 4) {  // whole vectors: what padding counts is not read
    for (; f < features; f += 4) add_terms<4>(terms, counts, f, sums + f);
  }
  for (; f < features; ++f) add_terms<1>(terms, counts, f, sums + f);
}

}  // namespace simmim

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

// The sums over all cells of each feature: of the terms, which have a table, and of the cells that
// are not empty. Of features at most kMostFeatures, whose counts lie in all lanes of the vectors of
// the instruction set that is in use; what lanes without a feature have counted is read.
constexpr int kMostFeatures = 64;
void sum_cells(const EntropyTerms& terms, const JointCounts<uint32_t>& counts, int64_t features,
               CellSums* sums);

// The same of one feature by itself.
inline void sum_cells(const EntropyTerms& terms, const JointCounts<int64_t>& counts, int64_t,
                      CellSums* sums) {
  *sums = {};
  for (int64_t run = 0; run < counts.runs; ++run) {
    for (int32_t bin = 0; bin < counts.bins; ++bin) {
      const int64_t count = counts.counts[run * counts.run_stride + bin * counts.lanes];
      sums->terms += term(terms, count);
      sums->observed += count != 0;
    }
  }
}

}  // namespace simmim

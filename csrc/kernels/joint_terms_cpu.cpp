// The terms of the counts of many features at a time, by gathers where the machine has them.
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_capability.h"
#include "joint_counts.h"
#include "vectors.h"

#define SIMMIM_KERNEL "joint_terms.h"
#include "every_target.h"

namespace simmim {

void sum_cells(const EntropyTerms& terms, const JointCounts<uint32_t>& counts, int64_t features,
               CellSums* sums) {
  SIMMIM_BEST_TARGET(sum_cells_of_lanes, terms, counts, features, sums);
}

}  // namespace simmim

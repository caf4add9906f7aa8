// Joint counts by carry-save addition, for pairs of few bins and many features.
#pragma once

#include <functional>

#include "joint.h"
#include "joint_counts.h"

namespace simmim {

// Receives the counts of x with each of a few features of y, y_begin and following; they are gone
// after the call.
using VisitCounts =
    std::function<void(int64_t x, int64_t y_begin, int64_t features, const JointCounts<uint32_t>&)>;

// Whether carry-save addition beats plain counters.
bool carry_save_pays(const CodePair& codes, int64_t groups = 1);

// Visits every pair of the block; where symmetric, those with y > x, though the visitor is told of
// some more. Takes a scratch of at most 14 MiB, whatever the block.
void count_pairs_by_carry_save(const CodePair& codes, const SampleGroups& groups, bool symmetric,
                               const PairBlock& block, const VisitCounts& visit);

}  // namespace simmim

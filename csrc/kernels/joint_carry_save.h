// Joint counts by carry-save addition, for pairs of few bins and many features.
#pragma once

#include <functional>

#include "joint.h"

namespace simmim {

// Receives the counts [x_bins, y_bins] of one pair; they are gone after the call.
using VisitPair = std::function<void(int64_t x, int64_t y, const int64_t* counts)>;

// Whether carry-save addition beats plain counters.
bool carry_save_pays(const CodePair& codes);

// Visits every pair of the block; where symmetric, those with y > x. Takes a scratch of at
// most 8 MiB, whatever the block.
void count_pairs_by_carry_save(const CodePair& codes, bool symmetric, const PairBlock& block,
                               const VisitPair& visit);

}  // namespace simmim

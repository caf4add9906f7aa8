// Counts of the samples of one label after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "joint.h"

namespace simmim {

// Calls visit(count) for the cells of every group of samples, with counters that serve any number
// of groups: they are all 0 in between. cell_of gives a sample's cell in [0, cells), or -1 for a
// sample that does not count. Empty cells may be left out.
template <typename CellOf, typename Visit>
void visit_groups(const SampleGroups& groups, int64_t cells, std::vector<int64_t>& counters,
                  CellOf&& cell_of, Visit&& visit) {
  counters.resize(static_cast<size_t>(cells));
  for (int64_t group = 0; group < groups.count; ++group) {
    const int64_t begin = groups.begin[group], end = groups.begin[group + 1];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cell = cell_of(i);
      if (cell >= 0) ++counters[cell];
    }
    if (end - begin < cells) {  // fewer samples than cells: go by the samples instead
      for (int64_t i = begin; i < end; ++i) {
        const int64_t cell = cell_of(i);
        if (cell < 0 || counters[cell] == 0) continue;
        visit(counters[cell]);
        counters[cell] = 0;
      }
    } else {
      for (int64_t cell = 0; cell < cells; ++cell) visit(counters[cell]);
      std::fill(counters.begin(), counters.end(), 0);
    }
  }
}

}  // namespace simmim

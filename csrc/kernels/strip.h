// The columns of a matrix that a kernel goes through together.
#pragma once

#include <cstdint>

#include "binning.h"

namespace simmim {

// Columns are features of a row-major x, or the samples of one feature, folded into rows.
template <typename Stored>
struct Strip {
  const Stored* x;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
  const uint32_t* order;               // which of x's rows the rows are; null: as they lie
  Binning<compute_t<Stored>> binning;  // of the first column
  int64_t bound_stride;                // from the low, high, scale of one column to the next: 0, 1
  // What explicit edges are compared with: as write_edge_table has it.
  const compute_t<Stored>* edge_table = nullptr;
  int tile_rows = 64;  // binned together: 16, 32, 48 or 64

  const Stored* row(int64_t row) const {
    return x + (order == nullptr ? row : int64_t{order[row]}) * row_stride;
  }
};

}  // namespace simmim

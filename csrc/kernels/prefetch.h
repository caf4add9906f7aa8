// Asks for memory ahead of the tiles of a strip. Part of a kernel: see every_target.h.

// What a tile reads is in the L2 cache: it was asked for, in the order of memory, while the rows of
// tiles before were binned, a little at a time, since only so many requests can be under way.
template <typename Stored>
struct Prefetch {
  const Strip<Stored>& strip;
  int64_t row, groups, left;  // groups of a row, and those left of this one
  const Stored* at;

  // For the tile at row, column, one of as many as there are groups.
  [[gnu::always_inline]] Prefetch(const Strip<Stored>& strip, int64_t first, int64_t column)
      : strip(strip), groups((strip.columns + kGroup - 1) / kGroup) {
    const int64_t done = column / kGroup * strip.tile_rows;
    row = first + strip.tile_rows + done / groups;
    left = groups - done % groups;
    if (strip.column_stride != 1) row = strip.rows;  // nothing to ask for
    at = row < strip.rows ? strip.row(row) + done % groups * kGroup : nullptr;
  }

  // What one row of one tile reads.
  [[gnu::always_inline]] void next() {
    if (row >= strip.rows) return;
#pragma GCC unroll 4
    for (int element = 0; element < kGroup; element += 64 / sizeof(Stored)) {
      __builtin_prefetch(at + element, 0, 2);
    }
    at += kGroup;
    if (--left > 0) return;
    left = groups;
    if (++row < strip.rows) at = strip.row(row);
  }
};

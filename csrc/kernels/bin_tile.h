// Bins the values of a strip, a tile at a time. Part of a kernel: see every_target.h.
#include "load_values.h"

constexpr int kGroup = 2 * kLanes;  // columns of a tile
constexpr int kTileRows = 64;       // the bins of a tile stay in the L1 cache

#include "bin_edges.h"

// low, high or scale of the columns of a tile.
template <typename Compute>
struct TileBound {
  static constexpr int kParts = kGroup / kValues<Compute>;
  Values<Compute> parts[kParts];

  [[gnu::always_inline]] TileBound(const Compute* bound, int64_t stride, int columns) {
    alignas(64) Compute lanes[kGroup] = {};
    if (stride != 1 || columns != kGroup) {
      for (int c = 0; c < columns; ++c) lanes[c] = bound[c * stride];
      bound = lanes;
    }
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      parts[part] = load_vector<Values<Compute>>(bound + part * kValues<Compute>);
    }
  }
};

// What a tile reads while it is binned is in the L2 cache: it was asked for, in the order of
// memory, while the rows of tiles before were binned.
template <typename Stored>
struct Prefetch {
  const Strip<Stored>& strip;
  int64_t row, column;

  // For the tile at row, column, one of as many as there are groups.
  Prefetch(const Strip<Stored>& strip, int64_t row, int64_t column) : strip(strip) {
    const int64_t groups = (strip.columns + kGroup - 1) / kGroup;
    const int64_t done = column / kGroup * kTileRows;
    this->row = row + kTileRows + done / groups;
    this->column = done % groups * kGroup;
  }

  [[gnu::always_inline]] void next() {
    if (row >= strip.rows) return;
    const auto* at = reinterpret_cast<const char*>(strip.row(row) + column);
#pragma GCC unroll 4
    for (size_t line = 0; line < kGroup * sizeof(Stored); line += 64) {
      __builtin_prefetch(at + line, 0, 2);
    }
    column += kGroup;
    if (column < strip.columns) return;
    column = 0;
    ++row;
  }
};

// uniform_bin of binning.h, lane by lane, or kNoBin.
template <bool kClip, typename Stored, typename Compute = compute_t<Stored>>
[[gnu::always_inline]] inline void bin_row(const Stored* row, const TileBound<Compute>& lows,
                                           const TileBound<Compute>& highs,
                                           const TileBound<Compute>& scales, int32_t bins,
                                           int32_t* bin) {
  const Values<Compute> last = Values<Compute>{} + static_cast<Compute>(bins - 1);
#pragma GCC unroll 4
  for (int part = 0; part < TileBound<Compute>::kParts; ++part) {
    const Values<Compute> low = lows.parts[part], high = highs.parts[part];
    Values<Compute> value = load_values(row + part * kValues<Compute>);
    if constexpr (kClip) {
      value = value < low ? low : value;
      value = value > high ? high : value;
    }
    Values<Compute> position = (value - low) * scales.parts[part];
    position = position < last ? position : last;
    position = (value >= low) & (value <= high) ? position : Values<Compute>{} + kNoBin;
    const auto result = __builtin_convertvector(position, vector_of<int32_t, kValues<Compute>>);
    memcpy(bin + part * kValues<Compute>, &result, sizeof result);
  }
}

// The columns of a tile where they are not side by side or not a whole group.
template <typename Stored>
[[gnu::noinline]] void copy_row(const Stored* source, int64_t stride, int columns, Stored* copy) {
  for (int c = 0; c < columns; ++c) copy[c] = source[c * stride];
  for (int c = columns; c < kGroup; ++c) copy[c] = Stored{};
}

// Calls bin(row, bins) for every row of a tile.
template <typename Stored, typename BinRow>
[[gnu::always_inline]] inline void for_each_row(const Strip<Stored>& strip, int64_t first, int rows,
                                                int64_t column, int32_t* bins, const BinRow& bin) {
  const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
  if (strip.column_stride == 1 && columns == kGroup) {
    Prefetch<Stored> prefetch(strip, first, column);
    for (int r = 0; r < rows; ++r, bins += kGroup) {
      prefetch.next();
      bin(strip.row(first + r) + column, bins);
    }
    return;
  }
  for (int r = 0; r < rows; ++r, bins += kGroup) {
    Stored copy[kGroup];
    copy_row(strip.row(first + r) + column * strip.column_stride, strip.column_stride, columns,
             copy);
    bin(copy, bins);
    std::fill(bins + columns, bins + kGroup, kNoBin);
  }
}

template <bool kClip, typename Stored>
[[gnu::noinline]] void bin_uniformly(const Strip<Stored> strip, int64_t row, int rows,
                                     int64_t column, int32_t* bins) {
  using Compute = compute_t<Stored>;
  const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
  const auto bound = [&](const Compute* bounds) {
    return TileBound<Compute>(bounds + column * strip.bound_stride, strip.bound_stride, columns);
  };
  const Binning<Compute>& binning = strip.binning;
  const auto low = bound(binning.low), high = bound(binning.high), scale = bound(binning.scale);
  for_each_row(strip, row, rows, column, bins, [&](const Stored* source, int32_t* bin) {
    bin_row<kClip>(source, low, high, scale, binning.bins, bin);
  });
}

template <bool kClip, typename Stored>
[[gnu::noinline]] void bin_by_edges(const Strip<Stored> strip, int64_t row, int rows,
                                    int64_t column, int32_t* bins) {
  const int32_t count = strip.binning.bins;
  const auto* table = strip.edge_table + column * strip.bound_stride * edge_rows(count);
  for_each_row(strip, row, rows, column, bins, [&](const Stored* source, int32_t* bin) {
    bin_row_by_edges<kClip>(source, table, count, bin);
  });
}

// The bins [rows, kGroup] of columns [column, column + kGroup), rows [row, row + rows); kNoBin also
// past the last column and, up to whole 16 rows, past the last row.
template <typename Stored>
void bin_tile(const Strip<Stored>& strip, int64_t row, int rows, int64_t column, int32_t* bins) {
  if constexpr (sizeof(Stored) == 1) {
    for_each_row(strip, row, rows, column, bins, [&](const Stored* code, int32_t* bin) {
      const int32_t count = strip.binning.bins;
      for (int c = 0; c < kGroup; ++c) bin[c] = code[c] < count ? int32_t{code[c]} : kNoBin;
    });
  } else if (strip.binning.edges != nullptr) {
    strip.binning.clip ? bin_by_edges<true>(strip, row, rows, column, bins)
                       : bin_by_edges<false>(strip, row, rows, column, bins);
  } else if (strip.binning.clip) {
    bin_uniformly<true>(strip, row, rows, column, bins);
  } else {
    bin_uniformly<false>(strip, row, rows, column, bins);
  }
  std::fill(bins + rows * kGroup, bins + (rows + 15) / 16 * 16 * kGroup, kNoBin);
}

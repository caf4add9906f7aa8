// Bins the values of a strip, a tile at a time. Part of a kernel: see every_target.h.
#include "load_values.h"

constexpr int kGroup = 2 * kLanes;  // columns of a tile
constexpr int kTileRows = 64;       // at most: the bins of a tile stay in the L1 cache

#include "bin_edges.h"
#include "prefetch.h"

// low, high or scale of the columns of a tile, with `none` for those it lacks.
template <typename Compute>
struct TileBound {
  static constexpr int kParts = kGroup / kValues<Compute>;
  Values<Compute> parts[kParts];

  [[gnu::always_inline]] TileBound(const Compute* bound, int64_t stride, int columns,
                                   Compute none) {
    alignas(64) Compute lanes[kGroup];
    if (stride != 1 || columns != kGroup) {
      for (int c = 0; c < kGroup; ++c) lanes[c] = c < columns ? bound[c * stride] : none;
      bound = lanes;
    }
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      parts[part] = load_vector<Values<Compute>>(bound + part * kValues<Compute>);
    }
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
  struct [[gnu::packed]] Anywhere {  // where tensors of torch.frombuffer may lie
    Stored value;
  };
  const auto* values = reinterpret_cast<const Anywhere*>(source);
  for (int c = 0; c < columns; ++c) copy[c] = values[c * stride].value;
  for (int c = columns; c < kGroup; ++c) copy[c] = Stored{};
}

// The rows from which a whole group can be read at a column, where there are fewer columns: what
// lies behind a row in memory is the next, but for the last ones.
template <typename Stored>
int64_t readable_rows(const Strip<Stored>& strip, int64_t column) {
  if (strip.column_stride != 1) return 0;
  const int64_t lacking = std::max<int64_t>(0, column + kGroup - strip.columns);
  if (lacking == 0) return strip.rows;
  if (strip.order != nullptr || strip.row_stride < strip.columns) return 0;
  return strip.rows - (lacking + strip.row_stride - 1) / strip.row_stride;
}

// Calls bin(row, bins) for every row of a tile, with some values for the columns it lacks.
template <typename Stored, typename BinRow>
[[gnu::always_inline]] inline void for_each_row(const Strip<Stored>& strip, int64_t first, int rows,
                                                int64_t column, int32_t* bins, const BinRow& bin) {
  const auto readable =
      static_cast<int>(std::clamp<int64_t>(readable_rows(strip, column) - first, 0, rows));
  Prefetch<Stored> prefetch(strip, first, column);
  for (int r = 0; r < readable; ++r, bins += kGroup) {
    prefetch.next();
    bin(strip.row(first + r) + column, bins);
  }
  const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
  for (int r = readable; r < rows; ++r, bins += kGroup) {
    Stored copy[kGroup];
    copy_row(strip.row(first + r) + column * strip.column_stride, strip.column_stride, columns,
             copy);
    bin(copy, bins);
  }
}

template <bool kClip, typename Stored>
[[gnu::noinline]] void bin_uniformly(const Strip<Stored> strip, int64_t row, int rows,
                                     int64_t column, int32_t* bins) {
  using Compute = compute_t<Stored>;
  const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
  const auto bound = [&](const Compute* bounds, Compute none) {
    return TileBound<Compute>(bounds + column * strip.bound_stride, strip.bound_stride, columns,
                              none);
  };
  const Binning<Compute>& binning = strip.binning;  // low above high: no value has a bin
  const auto low = bound(binning.low, 1), high = bound(binning.high, -1);
  const auto scale = bound(binning.scale, 0);
  for_each_row(strip, row, rows, column, bins, [&](const Stored* source, int32_t* bin) {
    bin_row<kClip>(source, low, high, scale, binning.bins, bin);
  });
}

template <bool kClip, typename Stored>
[[gnu::noinline]] void bin_by_edges(const Strip<Stored> strip, int64_t row, int rows,
                                    int64_t column, int32_t* bins) {
  const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
  const int32_t count = strip.binning.bins;
  const auto* table = strip.edge_table + column * strip.bound_stride * edge_rows(count);
  for_each_row(strip, row, rows, column, bins, [&](const Stored* source, int32_t* bin) {
    bin_row_by_edges<kClip>(source, table, count, bin);
    std::fill(bin + columns, bin + kGroup, kNoBin);
  });
}

// The bins [rows, kGroup] of columns [column, column + kGroup), rows [row, row + rows); kNoBin also
// past the last column and, up to whole 16 rows, past the last row.
template <typename Stored>
void bin_tile(const Strip<Stored>& strip, int64_t row, int rows, int64_t column, int32_t* bins) {
  if constexpr (sizeof(Stored) == 1) {
    const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
    const int32_t count = strip.binning.bins;
    for_each_row(strip, row, rows, column, bins, [&](const Stored* code, int32_t* bin) {
      for (int c = 0; c < kGroup; ++c) bin[c] = code[c] < count ? int32_t{code[c]} : kNoBin;
      std::fill(bin + columns, bin + kGroup, kNoBin);
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

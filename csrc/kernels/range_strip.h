// The range of the columns of a strip. Part of a kernel: see every_target.h.
#include "load_values.h"

// Comparisons with NaN fail, which leaves it out.
template <bool kFinite, typename Value>
[[gnu::always_inline]] inline void include(const Value& value, const Value& infinity, Value& low,
                                           Value& high) {
  if constexpr (kFinite) {
    low = (value < low) & (value > -infinity) ? value : low;
    high = (value > high) & (value < infinity) ? value : high;
  } else {
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
}

// Widens low and high [columns]. Rows are read in the order of memory, some at a time, so that low
// and high are seldom written, and are in the L2 cache by then: the processor by itself asks for
// the rest of a page alone.
template <bool kFinite, typename Stored, typename Compute = compute_t<Stored>>
void widen_range_by(const Strip<Stored>& strip, Compute* low, Compute* high) {
  constexpr int kRows = 4, kStep = kValues<Compute>;
  constexpr int64_t kAhead = int64_t{1} << 16;  // bytes
  const int64_t row_bytes = strip.columns * int64_t{sizeof(Stored)};
  const int64_t rows_ahead = std::max<int64_t>(1, kAhead / kRows / row_bytes) * kRows;
  const Compute infinity = std::numeric_limits<Compute>::infinity();
  const int64_t whole = strip.column_stride == 1 ? strip.columns / kStep * kStep : 0;
  for (int64_t first = 0; first < strip.rows; first += kRows) {
    const Stored* rows[kRows];  // the last one again where there are fewer
    for (int r = 0; r < kRows; ++r) rows[r] = strip.row(std::min(first + r, strip.rows - 1));
    const int64_t ahead = first + rows_ahead + kRows <= strip.rows ? rows_ahead : 0;
    for (int64_t c = 0; c < whole; c += kStep) {
      for (int r = 0; r < kRows; ++r) {
        __builtin_prefetch(rows[r] + ahead * strip.row_stride + c, 0, 2);
      }
      auto lows = load_vector<Values<Compute>>(low + c);
      auto highs = load_vector<Values<Compute>>(high + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        include<kFinite>(load_values(rows[r] + c), Values<Compute>{} + infinity, lows, highs);
      }
      memcpy(low + c, &lows, sizeof lows);
      memcpy(high + c, &highs, sizeof highs);
    }
    for (int64_t c = whole; c < strip.columns; ++c) {
      for (int r = 0; r < kRows; ++r) {
        const auto value = static_cast<Compute>(rows[r][c * strip.column_stride]);
        include<kFinite>(value, infinity, low[c], high[c]);
      }
    }
  }
}

template <typename Stored, typename Compute = compute_t<Stored>>
void widen_range(const Strip<Stored>& strip, bool finite, Compute* low, Compute* high) {
  if (strip.columns == 0) return;
  finite ? widen_range_by<true>(strip, low, high) : widen_range_by<false>(strip, low, high);
}

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
// and high are seldom written.
template <bool kFinite, typename Stored, typename Compute = compute_t<Stored>>
void widen_range_by(const Strip<Stored>& strip, Compute* low, Compute* high) {
  constexpr int kRows = 4, kStep = kValues<Compute>;
  const Compute infinity = std::numeric_limits<Compute>::infinity();
  const int64_t whole = strip.column_stride == 1 ? strip.columns / kStep * kStep : 0;
  for (int64_t first = 0; first < strip.rows; first += kRows) {
    const Stored* rows[kRows];  // the last one again where there are fewer
    for (int r = 0; r < kRows; ++r) rows[r] = strip.row(std::min(first + r, strip.rows - 1));
    for (int64_t c = 0; c < whole; c += kStep) {
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
  finite ? widen_range_by<true>(strip, low, high) : widen_range_by<false>(strip, low, high);
}

// Bins the values of a tile, or counts their bins at once, faster than bin_tile.h: on the promise
// that all are in range, which is checked for the whole tile instead of value by value. Part of a
// kernel: see every_target.h.

// A group of columns fills two vectors: its first and its second half or, of bfloat16, where one
// operation then loads a vector, its even and its odd columns.
#if defined(SIMMIM_AVX512)
template <typename Stored>
constexpr bool kAlternates = std::is_same_v<Stored, BFloat16>;
#else
template <typename Stored>
constexpr bool kAlternates = false;
#endif
template <typename Stored>
constexpr int column_of_lane(int lane) {
  return kAlternates<Stored> ? lane % kLanes * 2 + lane / kLanes : lane;
}

// Puts the bins of a tile, column by column, in the order of lanes.
template <typename Stored>
void order_by_lane(int rows, int32_t* bins) {
  if constexpr (!kAlternates<Stored>) return;
  for (int r = 0; r < rows; ++r, bins += kGroup) {
    int32_t columns[kGroup];
    memcpy(columns, bins, sizeof columns);
    for (int lane = 0; lane < kGroup; ++lane) bins[lane] = columns[column_of_lane<Stored>(lane)];
  }
}

#if defined(SIMMIM_AVX512)

// Part 0 or 1 of the group at `source`.
template <typename Stored>
[[gnu::always_inline]] inline __m512 load_part(const Stored* source, int part) {
  if constexpr (kAlternates<Stored>) {
    const Words pairs = load_vector<Words>(source);
    return (__m512)(part == 0 ? pairs << 16 : pairs & 0xffff0000u);
  } else {
    return (__m512)load_values(source + part * kLanes);
  }
}
template <typename Stored>
[[gnu::always_inline]] inline __m512 load_bound(const float* bound, int part) {
  if constexpr (kAlternates<Stored>) {
    Words columns;
    for (int lane = 0; lane < kLanes; ++lane) columns[lane] = 2 * lane + part;
    return _mm512_permutex2var_ps(_mm512_loadu_ps(bound), (__m512i)columns,
                                  _mm512_loadu_ps(bound + kLanes));
  } else {
    return _mm512_loadu_ps(bound + part * kLanes);
  }
}

// Whether the values that were binned are in range, found out beside the binning: the sign of a
// position tells a value below its low, the conversion to an integer makes NaN negative, and the
// largest value tells one above its high.
struct RangeCheck {
  __m512i negative;
  __m512 largest;

  [[gnu::always_inline]] RangeCheck()
      : negative(_mm512_setzero_si512()),
        largest(_mm512_set1_ps(-std::numeric_limits<float>::infinity())) {}
  [[gnu::always_inline]] bool passes(__m512 high) const {
    return _mm512_cmp_ps_mask(largest, high, _CMP_GT_OQ) == 0 &&
           _mm512_movepi32_mask(negative) == 0;
  }
};

// The range of the columns of a part of a group.
struct LaneBounds {
  __m512 low, high, scale, last;

  template <typename Stored>
  [[gnu::always_inline]] LaneBounds(const Strip<Stored>& strip, int64_t column, int part) {
    const Binning<float>& binning = strip.binning;
    low = load_bound<Stored>(binning.low + column, part);
    high = load_bound<Stored>(binning.high + column, part);
    scale = load_bound<Stored>(binning.scale + column, part);
    last = _mm512_set1_ps(static_cast<float>(binning.bins - 1));
    // -0 - 0 is -0, which would look like a value below; -0 - -0 is 0.
    const __mmask16 zero = _mm512_cmp_ps_mask(low, _mm512_setzero_ps(), _CMP_EQ_OQ);
    low = _mm512_mask_blend_ps(zero, low, _mm512_set1_ps(-0.0f));
  }

  // uniform_bin of binning.h, lane by lane, of values that are in range.
  [[gnu::always_inline]] Words bin(__m512 value, RangeCheck& check) const {
    const __m512 position = _mm512_mul_ps(_mm512_sub_ps(value, low), scale);
    const __m512i bin = _mm512_maskz_cvttps_epi32(
        0xffff, _mm512_maskz_min_ps(0xffff, last, position));  // NaN stays NaN
    check.largest = _mm512_maskz_max_ps(0xffff, check.largest, value);
    check.negative =
        _mm512_ternarylogic_epi32(check.negative, _mm512_castps_si512(position), bin, 0xfe);
    return (Words)bin;
  }
};

// The rows of a strip, one after another, from a column on.
template <typename Stored>
struct RowCursor {
  const Strip<Stored>& strip;
  int64_t row, column;
  const Stored* at;

  [[gnu::always_inline]] RowCursor(const Strip<Stored>& strip, int64_t row, int64_t column)
      : strip(strip), row(row), column(column), at(strip.row(row) + column) {}
  [[gnu::always_inline]] const Stored* next() {
    if (strip.order != nullptr) return strip.row(row++) + column;
    const Stored* result = at;
    at += strip.row_stride;
    return result;
  }
};

// The bins of a tile, lane by lane; or false where a value is out of range.
template <typename Stored>
[[gnu::noinline]] bool bin_values(const Strip<Stored>& strip, int64_t row, int rows, int64_t column,
                                  int32_t* bins) {
  const LaneBounds first(strip, column, 0), second(strip, column, 1);
  RangeCheck of_first, of_second;
  Prefetch<Stored> prefetch(strip, row, column);
  RowCursor<Stored> cursor(strip, row, column);
  for (int r = 0; r < rows; ++r, bins += kGroup) {
    prefetch.next();
    const Stored* values = cursor.next();
    const Words low = first.bin(load_part(values, 0), of_first);
    const Words high = second.bin(load_part(values, 1), of_second);
    memcpy(bins, &low, sizeof low);
    memcpy(bins + kLanes, &high, sizeof high);
  }
  return of_first.passes(first.high) && of_second.passes(second.high);
}

// Adds a part of the group of a tile without writing its bins down: bit bin % 32 of
// words[bin / 32].
template <int kWords, typename Stored>
[[gnu::noinline]] bool count_part(const Strip<Stored>& strip, int64_t row, int rows, int64_t column,
                                  int part, State* counts) {
  const LaneBounds bounds(strip, column, part);
  RangeCheck check;
  Prefetch<Stored> prefetch(strip, row, column);
  RowCursor<Stored> cursor(strip, row, column);
  return State::add_each<kWords>(
      counts, rows / 16,
      [&](int, int, Words* words) {
        if (part == 0) prefetch.next();
        const Words bin = bounds.bin(load_part(cursor.next(), part), check);
        for (int w = 0; w < kWords; ++w) words[w] = shifted(Words{} + 1, bin - 32u * w);
      },
      [&] { return check.passes(bounds.high); });
}

// The same for both parts and up to 16 bins: bit bin, or bin + 16 for the second part.
template <typename Stored>
[[gnu::noinline]] bool count_packed(const Strip<Stored>& strip, int64_t row, int rows,
                                    int64_t column, State* counts) {
  const LaneBounds first(strip, column, 0), second(strip, column, 1);
  RangeCheck of_first, of_second;
  Prefetch<Stored> prefetch(strip, row, column);
  RowCursor<Stored> cursor(strip, row, column);
  return State::add_each<1>(
      counts, rows / 16,
      [&](int, int, Words* word) {
        prefetch.next();
        const Stored* values = cursor.next();
        *word = shifted(Words{} + 1, first.bin(load_part(values, 0), of_first)) |
                shifted(Words{} + (1 << 16), second.bin(load_part(values, 1), of_second));
      },
      [&] { return of_first.passes(first.high) && of_second.passes(second.high); });
}

// Counts a tile of up to 64 bins; returns the parts of its group that it did, of which the next has
// a value out of range.
template <typename Stored>
int count_values(const Strip<Stored>& strip, int64_t row, int rows, int64_t column, State* states) {
  if (packs(strip.binning.bins)) return count_packed(strip, row, rows, column, states) ? 2 : 0;
  const int words = words_of(strip.binning.bins);
  const auto count = words == 1 ? count_part<1, Stored> : count_part<2, Stored>;
  for (int part = 0; part < 2; ++part, states += words) {
    if (!count(strip, row, rows, column, part, states)) return part;
  }
  return 2;
}

// Whether a tile can be binned or counted so.
template <typename Stored>
bool takes_values(const Strip<Stored>& strip, int rows, int64_t column) {
  return rows % 16 == 0 && strip.binning.edges == nullptr && !strip.binning.clip &&
         strip.column_stride == 1 && strip.bound_stride == 1 && column + kGroup <= strip.columns;
}

#endif

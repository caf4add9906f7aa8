// Counts the bins of a strip. Part of a kernel: see every_target.h.
#include "bin_tile.h"
#include "bit_counts.h"

constexpr int kWordBits = 32;
constexpr int words_of(int32_t bins) { return (bins + kWordBits - 1) / kWordBits; }
// Up to 16 bins, the two vectors of a group share their words.
constexpr bool packs(int32_t bins) { return bins <= kWordBits / 2; }
constexpr int states_of(int32_t bins) { return packs(bins) ? 1 : 2 * words_of(bins); }

using State = BitCounts<Words>;

// one << bin, or 0 where bin is not below 32, as negative bins are not.
[[gnu::always_inline]] inline Words shifted(Words one, Words bin) {
#if defined(SIMMIM_AVX512)
  return (Words)_mm512_maskz_sllv_epi32(0xffff, (__m512i)one, (__m512i)bin);
#elif defined(SIMMIM_AVX2)
  return (Words)_mm256_sllv_epi32((__m256i)one, (__m256i)bin);
#else
  return (one << (bin & 31)) & (Words)(bin < 32);
#endif
}

#include "count_values.h"

// Rows of a tile as words with a bit for each bin from first_bin on.
struct OneHotRows {
  const int32_t* bins;
  uint32_t first_bin;
  [[gnu::always_inline]] Words operator[](int row) const {
    return shifted(Words{} + 1, load_vector<Words>(bins + row * kGroup) - first_bin);
  }
};

// The same for both vectors of a group in one: bit bin, or bin + 16 for the second.
struct PackedRows {
  const int32_t* bins;
  [[gnu::always_inline]] Words operator[](int row) const {
    return shifted(Words{} + 1, load_vector<Words>(bins + row * kGroup)) |
           shifted(Words{} + (1 << 16), load_vector<Words>(bins + row * kGroup + kLanes));
  }
};

// Adds the bins of a tile, 16 rows at a time, to the states of its group: [halves, words], of which
// the first `done` halves are left alone.
[[gnu::noinline]] void count_tile(const int32_t* tile, int rows, int32_t bins, int done,
                                  State* states) {
  const int adds = (rows + State::kRows - 1) / State::kRows;
  const auto at = [&](int i) { return tile + i * State::kRows * kGroup; };
  if (packs(bins)) return states->add_all(adds, [&](int i) { return PackedRows{at(i)}; });
  states += done * words_of(bins);
  for (int half = done; half < 2; ++half) {
    for (int bin = 0; bin < bins; bin += kWordBits) {
      states++->add_all(adds, [&](int i) {
        return OneHotRows{at(i) + half * kLanes, static_cast<uint32_t>(bin)};
      });
    }
  }
}

// Bins and counts tiles, the fast way while their values are in range.
template <typename Stored>
struct TileCounter {
  static constexpr int kDistrust = 64;  // tiles, after one with values out of range
  int distrust = 0;
  alignas(64) int32_t tile[kTileRows * kGroup];

  void count(const Strip<Stored>& strip, int64_t row, int rows, int64_t column, State* states) {
    const int32_t bins = strip.binning.bins;
    int done = 0;  // halves of the group
    bool binned = false;
#if defined(SIMMIM_AVX512)
    if constexpr (std::is_same_v<compute_t<Stored>, float> && sizeof(Stored) > 1) {
      if (distrust == 0 && takes_values(strip, rows, column)) {
        if (words_of(bins) <= 2) {
          done = count_values(strip, row, rows, column, states);
          if (done == 2) return;
        } else {
          binned = bin_values(strip, row, rows, column, tile);
        }
        if (!binned) distrust = kDistrust;
      }
    }
    distrust -= distrust > 0;
#endif
    if (!binned) {
      bin_tile(strip, row, rows, column, tile);
      order_by_lane<Stored>(rows, tile);
    }
    count_tile(tile, rows, bins, done, states);
  }
};

// Adds what the states of a group have counted to the counts [columns, bins] of its columns, or to
// [bins] where all of them are one feature's.
template <typename Stored>
[[gnu::noinline]] void read_counts(const State* states, int columns, int64_t rows, int32_t bins,
                                   bool one_feature, int64_t* counts) {
  const int words = words_of(bins);
  for (int state = 0; state < states_of(bins); ++state) {
    for (int octet = 0; octet < (rows < 256 ? 1 : 2); ++octet) {
      Words bytes[8];
      states[state].bytes_of_counts(octet, bytes);
      for (int bit = 0; bit < kWordBits; ++bit) {
        const int half = packs(bins) ? bit / (kWordBits / 2) : state / words;
        const int bin = packs(bins) ? bit % (kWordBits / 2) : state % words * kWordBits + bit;
        if (bin >= bins) continue;
        const Words part = (bytes[bit % 8] >> (bit / 8 * 8) & 0xffu) << (8 * octet);
        if (one_feature) {  // lanes past the last column have counted nothing
          uint32_t sum = 0;
          for (int lane = 0; lane < kLanes; ++lane) sum += part[lane];
          counts[bin] += sum;
        } else {
          for (int lane = 0; lane < kLanes; ++lane) {
            const int column = column_of_lane<Stored>(half * kLanes + lane);
            if (column < columns) counts[column * bins + bin] += part[lane];
          }
        }
      }
    }
  }
}

// Adds to counts [columns, bins], or [bins] where all columns are of one feature.
template <typename Stored>
void count_strip(const Strip<Stored>& strip, int64_t* counts, CacheLine* workspace) {
  const int32_t bins = strip.binning.bins;
  const int64_t groups = (strip.columns + kGroup - 1) / kGroup;
  const int group_states = states_of(bins);
  const bool one_feature = strip.bound_stride == 0;
  auto* states = reinterpret_cast<State*>(workspace);  // [groups, group_states]
  constexpr int64_t kSettle = 16 * State::kRows;       // most rows between two calls of settle
  TileCounter<Stored> counter;

  for (int64_t begin = 0; begin < strip.rows; begin += State::kMaxRows) {
    const int64_t end = std::min(begin + State::kMaxRows, strip.rows);
    for (int64_t s = 0; s < groups * group_states; ++s) states[s].clear();
    int64_t unsettled = 0;
    for (int64_t row = begin; row < end; row += strip.tile_rows) {
      const int rows = static_cast<int>(std::min<int64_t>(strip.tile_rows, end - row));
      unsettled += rows;
      const bool settle = unsettled + strip.tile_rows > kSettle || row + rows == end;
      if (settle) unsettled = 0;
      for (int64_t g = 0; g < groups; ++g) {
        State* own = states + g * group_states;
        counter.count(strip, row, rows, g * kGroup, own);
        for (int s = 0; settle && s < group_states; ++s) own[s].settle();
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - g * kGroup));
      read_counts<Stored>(states + g * group_states, columns, end - begin, bins, one_feature,
                          counts + (one_feature ? 0 : g * kGroup * bins));
    }
  }
}

int64_t group_size() { return kGroup; }
// What count_strip needs for a group of columns.
int64_t workspace_bytes(int32_t bins) { return states_of(bins) * int64_t{sizeof(State)}; }

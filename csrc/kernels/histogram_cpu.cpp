// Binning is vectorised over features, or over the samples of one feature where those lie side by
// side; tiles of 16 rows are binned at a time. Few bins are counted without touching memory: each
// becomes one bit of a word, and carry-save addition counts the bits. Many bins take plain
// counters.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "carry_save.h"
#include "cpu_capability.h"
#include "histogram.h"

namespace simmim {
namespace {

constexpr int kRows = 16;  // of a tile
// Carry-save addition takes work in proportion to the bins, by the width of the vectors; counters
// take the same for any. Measured crossovers.
constexpr int max_carry_save_bins(int lanes) { return lanes >= 16 ? 256 : 128; }
constexpr int kWordBits = 32;
// What the planes or counters of the features in work may take of the L2 cache.
constexpr int64_t kStateBytes = 128 * 1024;
constexpr int kPrefetchRows = 16;

struct alignas(64) CacheLine {
  unsigned char bytes[64];
};

// The columns that are counted together, as a matrix of rows: features of a row-major x, or the
// samples of one feature, folded into rows as wide as a group.
template <typename Stored>
struct Strip {
  const Stored* x;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
  // Bounds of every column, padded to whole groups; what padding counts is not read.
  const compute_t<Stored>* low;
  const compute_t<Stored>* high;
  const compute_t<Stored>* scale;
  int32_t bins;
  bool clip;
};

template <int kLanes>
using Words = vector_of<uint32_t, kLanes>;
template <int kLanes>
using Bins = vector_of<int32_t, kLanes>;

template <typename Stored, int kLanes>
[[gnu::always_inline]] inline auto load_values(const Stored* source) {
  if constexpr (std::is_same_v<Stored, BFloat16> || std::is_same_v<Stored, Half>) {
    const auto raw = load_vector<vector_of<uint16_t, kLanes>>(source);
    const auto bits = __builtin_convertvector(raw, Words<kLanes>);
    using Floats = vector_of<float, kLanes>;
    if constexpr (std::is_same_v<Stored, BFloat16>) return (Floats)(bits << 16);
    // As Half's own conversion.
    const Words<kLanes> magnitude = (bits & 0x7fffu) << 13;
    const auto scaled = (Words<kLanes>)((Floats)magnitude * 0x1p112f);
    const auto special = (Words<kLanes>)(magnitude >= 0x0f800000u);
    return (Floats)((bits & 0x8000u) << 16 | (scaled & ~special) |
                    ((magnitude | 0x7f800000u) & special));
  } else {
    return load_vector<vector_of<Stored, kLanes>>(source);
  }
}

// uniform_bin of binning.h, lane by lane. valid is 1 where the value has a bin, else 0.
template <typename Stored, int kLanes>
[[gnu::always_inline]] inline void bin_lanes(const Strip<Stored>& strip, const Stored* source,
                                             int64_t column, Bins<kLanes>& bin,
                                             Words<kLanes>& valid) {
  const Bins<kLanes> last = Bins<kLanes>{} + (strip.bins - 1);
  if constexpr (std::is_same_v<Stored, uint8_t>) {
    bin = __builtin_convertvector((load_vector<vector_of<uint8_t, kLanes>>(source)), Bins<kLanes>);
    valid = (Words<kLanes>)(bin <= last) & 1u;
  } else {
    using Values = vector_of<compute_t<Stored>, kLanes>;
    const auto low = load_vector<Values>(strip.low + column);
    const auto high = load_vector<Values>(strip.high + column);
    Values value = load_values<Stored, kLanes>(source);
    if (strip.clip) {
      value = value < low ? low : value;
      value = value > high ? high : value;
    }
    const auto inside = (value >= low) & (value <= high);
    valid = __builtin_convertvector(inside, Words<kLanes>) & 1u;
    bin = __builtin_convertvector((value - low) * load_vector<Values>(strip.scale + column),
                                  Bins<kLanes>);
    bin = bin < last ? bin : last;
  }
}

// 16 rows of a group of columns as they can be loaded: in place, or copied where they are strided
// or fewer than a group. Rows past the end repeat the first: whoever counts them leaves them out.
template <typename Stored, int kColumns>
struct Tile {
  const Stored* rows[kRows];
  int row_count;
  Stored copy[kRows * kColumns];

  [[gnu::always_inline]] void point_at(const Strip<Stored>& strip, int64_t row, int64_t column) {
    row_count = static_cast<int>(std::min<int64_t>(kRows, strip.rows - row));
    const int64_t columns = std::min<int64_t>(kColumns, strip.columns - column);
    const Stored* first = strip.x + row * strip.row_stride + column * strip.column_stride;
    if (strip.column_stride == 1 && columns == kColumns && row_count == kRows) [[likely]] {
      for (int r = 0; r < kRows; ++r) {
        rows[r] = first + r * strip.row_stride;
        __builtin_prefetch(rows[r] + kPrefetchRows * strip.row_stride);
      }
      return;
    }
    for (int r = 0; r < kRows; ++r) {
      rows[r] = copy + (r < row_count ? r : 0) * kColumns;
      for (int64_t c = 0; c < kColumns && r < row_count; ++c) {
        copy[r * kColumns + c] =
            c < columns ? first[r * strip.row_stride + c * strip.column_stride] : Stored{};
      }
    }
  }
};

constexpr int words_of(int bins) { return bins <= 32 ? 1 : bins <= 64 ? 2 : bins <= 128 ? 4 : 8; }
// Up to 16 bins, two columns share a word.
constexpr int halves_of(int bins) { return bins <= kWordBits / 2 ? 2 : 1; }

template <int kLanes>
[[gnu::always_inline]] inline void read_counts(const BitCounts<Words<kLanes>>& state, int word,
                                               int halves, int64_t columns, int32_t bins,
                                               int64_t* counts) {
  const int bits = kWordBits / halves;
  for (int octet = 0; octet < 2; ++octet) {
    alignas(64) Words<kLanes> bytes[8];
    state.bytes_of_counts(octet, bytes);
    for (int half = 0; half < halves; ++half) {
      for (int lane = 0; lane < kLanes && half * kLanes + lane < columns; ++lane) {
        int64_t* own = counts + (half * kLanes + lane) * int64_t{bins};
        for (int b = 0; b < bits && word * kWordBits + b < bins; ++b) {
          const int bit = half * bits + b;
          const uint32_t byte = bytes[bit % 8][lane] >> (bit / 8 * 8) & 0xffu;
          own[word * kWordBits + b] += int64_t{byte} << (8 * octet);
        }
      }
    }
  }
}

// Adds a tile to the counts of its group, one or kWords of them.
template <int kLanes, int kHalves, int kWords, typename Stored>
[[gnu::always_inline]] inline void add_tile(const Strip<Stored>& strip, int64_t row, int64_t column,
                                            BitCounts<Words<kLanes>>* states) {
  Tile<Stored, kHalves * kLanes> tile;
  tile.point_at(strip, row, column);
  Words<kLanes> ones[kRows];  // bit bin % 32, or bin + 16 in the second half
  Bins<kLanes> bins[kRows];
  for (int r = 0; r < kRows; ++r) {
    Bins<kLanes> bin;
    Words<kLanes> valid;
    bin_lanes<Stored, kLanes>(strip, tile.rows[r], column, bin, valid);
    ones[r] = valid << (Words<kLanes>)(bin & (kWordBits / kHalves - 1));
    if constexpr (kHalves == 2) {
      bin_lanes<Stored, kLanes>(strip, tile.rows[r] + kLanes, column + kLanes, bin, valid);
      ones[r] |= (valid << 16) << (Words<kLanes>)(bin & 15);
    }
    if constexpr (kWords > 1) bins[r] = bin;
  }
  for (int r = tile.row_count; r < kRows; ++r) ones[r] = Words<kLanes>{};
  if constexpr (kWords == 1) {
    states->add(ones);
  } else {
    for (int w = 0; w < kWords; ++w) {
      Words<kLanes> own[kRows];
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kWords == 2) {
          own[r] = ones[r] & (Words<kLanes>)(w == 0 ? bins[r] < 32 : bins[r] >= 32);
        } else {
          own[r] = ones[r] & (Words<kLanes>)(bins[r] >> 5 == w);
        }
      }
      states[w].add(own);
    }
  }
}

// Counts a strip of at most 32 * kWords uniform bins into counts [columns, bins].
template <int kLanes, int kHalves, int kWords, typename Stored>
[[gnu::always_inline]] inline void count_by_carry_save(Strip<Stored> strip, int64_t* counts,
                                                       void* workspace) {
  constexpr int kGroup = kHalves * kLanes;
  const int64_t states_used = (strip.columns + kGroup - 1) / kGroup * kWords;
  auto* states = static_cast<BitCounts<Words<kLanes>>*>(workspace);  // [groups, kWords]
  const int64_t rows = strip.rows;

  for (int64_t begin = 0; begin < rows; begin += BitCounts<Words<kLanes>>::kMaxRows) {
    strip.rows = std::min(begin + BitCounts<Words<kLanes>>::kMaxRows, rows);
    for (int64_t s = 0; s < states_used; ++s) states[s].clear();
    for (int64_t row = begin; row < strip.rows; row += kRows) {
      for (int64_t s = 0; s < states_used; s += kWords) {
        add_tile<kLanes, kHalves, kWords>(strip, row, s / kWords * kGroup, states + s);
      }
      if ((row - begin) / kRows % 16 != 15 && row + kRows < strip.rows) continue;
      for (int64_t s = 0; s < states_used; ++s) states[s].settle();
    }
    for (int64_t s = 0; s < states_used; ++s) {
      const int64_t column = s / kWords * kGroup;
      read_counts<kLanes>(states[s], static_cast<int>(s % kWords), kHalves, strip.columns - column,
                          strip.bins, counts + column * strip.bins);
    }
  }
}

// Counts a strip of any number of uniform bins with one counter for each, and one more for what has
// no bin, so that no branch is needed.
template <int kLanes, typename Stored>
[[gnu::always_inline]] inline void count_by_counters(const Strip<Stored>& strip, int64_t* counts,
                                                     void* workspace) {
  constexpr int64_t kMaxRows = int64_t{1} << 31;  // of 32-bit counters
  const int32_t slots = strip.bins + 1;
  auto* counters = static_cast<uint32_t*>(workspace);  // [columns of whole groups, slots]
  const int64_t padded = (strip.columns + kLanes - 1) / kLanes * kLanes;
  for (int64_t begin = 0; begin < strip.rows; begin += kMaxRows) {
    Strip<Stored> part = strip;
    part.rows = std::min(begin + kMaxRows, strip.rows);
    std::fill_n(counters, padded * slots, 0u);
    for (int64_t row = begin; row < part.rows; row += kRows) {
      for (int64_t column = 0; column < padded; column += kLanes) {
        Tile<Stored, kLanes> tile;
        tile.point_at(part, row, column);
        alignas(64) int32_t bins[kRows][kLanes];
        for (int r = 0; r < tile.row_count; ++r) {
          Bins<kLanes> bin;
          Words<kLanes> valid;
          bin_lanes<Stored, kLanes>(strip, tile.rows[r], column, bin, valid);
          bin = valid != 0u ? bin + 1 : Bins<kLanes>{};
          memcpy(bins[r], &bin, sizeof bin);
        }
        uint32_t* own = counters + column * slots;
        for (int r = 0; r < tile.row_count; ++r) {
          for (int lane = 0; lane < kLanes; ++lane) ++own[lane * slots + bins[r][lane]];
        }
      }
    }
    for (int64_t column = 0; column < strip.columns; ++column) {
      for (int32_t bin = 0; bin < strip.bins; ++bin) {
        counts[column * strip.bins + bin] += counters[column * slots + 1 + bin];
      }
    }
  }
}

template <int kLanes, typename Stored>
[[gnu::always_inline]] inline void count_strip(const Strip<Stored>& strip, int64_t* counts,
                                               void* workspace) {
  if (strip.bins <= 16) {
    count_by_carry_save<kLanes, 2, 1>(strip, counts, workspace);
  } else if (strip.bins <= 32) {
    count_by_carry_save<kLanes, 1, 1>(strip, counts, workspace);
  } else if (strip.bins <= 64) {
    count_by_carry_save<kLanes, 1, 2>(strip, counts, workspace);
  } else if (strip.bins <= 128) {
    count_by_carry_save<kLanes, 1, 4>(strip, counts, workspace);
  } else if constexpr (max_carry_save_bins(kLanes) > 128) {
    count_by_carry_save<kLanes, 1, 8>(strip, counts, workspace);
  } else {
    count_by_counters<kLanes>(strip, counts, workspace);
  }
}

// Lanes of 32 bits, and count_strip in their width, for each capability.
template <typename Stored>
struct Target {
  int lanes;
  void (*count_strip)(const Strip<Stored>&, int64_t*, void*);
};

template <typename Stored>
void count_strip_portable(const Strip<Stored>& strip, int64_t* counts, void* workspace) {
  count_strip<4>(strip, counts, workspace);
}
#if defined(__x86_64__)
template <typename Stored>
SIMMIM_TARGET_AVX2 void count_strip_avx2(const Strip<Stored>& strip, int64_t* counts,
                                         void* workspace) {
  count_strip<8>(strip, counts, workspace);
}
template <typename Stored>
SIMMIM_TARGET_AVX512 void count_strip_avx512(const Strip<Stored>& strip, int64_t* counts,
                                             void* workspace) {
  count_strip<16>(strip, counts, workspace);
}
#endif

template <typename Stored>
Target<Stored> choose_target() {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512) return {16, count_strip_avx512<Stored>};
  if (cpu_capability() >= CpuCapability::avx2) return {8, count_strip_avx2<Stored>};
#endif
  return {4, count_strip_portable<Stored>};
}

// Bins given as edges: a search for every value.
template <typename Stored>
void count_by_search(const HistogramArgs<Stored>& args, int64_t feature, int64_t sample_begin,
                     int64_t sample_end) {
  int64_t* counts = args.counts + feature * args.binning.bins;
  const Stored* column = args.x + feature * args.feature_stride;
  for (int64_t sample = sample_begin; sample < sample_end; ++sample) {
    const int32_t bin = stored_bin(column[sample * args.sample_stride], args.binning, feature);
    if (bin != kNoBin) ++counts[bin];
  }
}

}  // namespace

template <typename Stored>
void histogram_cpu(const HistogramArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
                   int64_t sample_begin, int64_t sample_end) {
  using Compute = compute_t<Stored>;
  if (args.binning.edges != nullptr) {
    for (int64_t f = feature_begin; f < feature_end; ++f) {
      count_by_search(args, f, sample_begin, sample_end);
    }
    return;
  }
  const Target<Stored> target = choose_target<Stored>();
  const int32_t bins = args.binning.bins;
  const int64_t group = 2 * target.lanes;
  const int64_t column_bytes = bins <= max_carry_save_bins(target.lanes)
                                   ? 17 * 4 * words_of(bins) / halves_of(bins)
                                   : 4 * (int64_t{bins} + 1);
  const int64_t width = std::max(kStateBytes / column_bytes / group, int64_t{1}) * group;
  std::vector<CacheLine> workspace((width * column_bytes + 63) / 64);
  std::vector<Compute> low(width), high(width), scale(width);

  // Samples side by side, as the codes of Discretized: fold each feature into rows of one group.
  const int64_t samples = sample_end - sample_begin;
  const bool fold = args.sample_stride == 1 && (args.feature_stride != 1 || args.features == 1);
  const int64_t columns_at_once = fold ? 1 : width;
  std::vector<int64_t> folded(fold ? group * bins : 0);

  for (int64_t f = feature_begin; f < feature_end; f += columns_at_once) {
    const int64_t features = std::min(columns_at_once, feature_end - f);
    Strip<Stored> strip{args.x + f * args.feature_stride + sample_begin * args.sample_stride,
                        samples,
                        features,
                        args.sample_stride,
                        args.feature_stride,
                        low.data(),
                        high.data(),
                        scale.data(),
                        bins,
                        args.binning.clip};
    if constexpr (!std::is_same_v<Stored, uint8_t>) {
      for (int64_t c = 0; c < (fold ? group : features); ++c) {
        const int64_t feature = fold ? f : f + c;
        low[c] = args.binning.low[feature];
        high[c] = args.binning.high[feature];
        scale[c] = args.binning.scale[feature];
      }
    }
    int64_t* counts = args.counts + f * bins;
    if (!fold) {
      target.count_strip(strip, counts, workspace.data());
      continue;
    }
    strip.rows = samples / group;
    strip.columns = strip.row_stride = group;
    strip.column_stride = 1;
    std::fill(folded.begin(), folded.end(), 0);
    target.count_strip(strip, folded.data(), workspace.data());
    strip.x += strip.rows * group;  // what does not fill a row
    strip.rows = 1;
    strip.columns = samples % group;
    if (strip.columns != 0) target.count_strip(strip, folded.data(), workspace.data());
    for (int64_t i = 0; i < group * bins; ++i) counts[i % bins] += folded[i];
  }
}

#define SIMMIM_INSTANTIATE(Stored) \
  template void histogram_cpu(const HistogramArgs<Stored>&, int64_t, int64_t, int64_t, int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)
SIMMIM_INSTANTIATE(uint8_t)

}  // namespace simmim

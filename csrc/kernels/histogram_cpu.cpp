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

// How x lies in memory; half precision is widened as tiles are loaded.
enum class Storage { value, half, bfloat16 };

// The columns that are counted together, as a matrix of rows: features of a row-major x, or the
// samples of one feature, folded into rows as wide as a group. Value is float, double or uint8_t.
template <typename Value>
struct Strip {
  const void* x;
  Storage storage;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
  // Bounds of every column, padded to whole groups; what padding counts is not read.
  const Value* low;
  const Value* high;
  const Value* scale;
  int32_t bins;
  bool clip;
};

template <int kLanes>
using Words = vector_of<uint32_t, kLanes>;
template <int kLanes>
using Bins = vector_of<int32_t, kLanes>;

// uniform_bin of binning.h, lane by lane. valid is 1 where the value has a bin, else 0.
template <typename Value, int kLanes>
[[gnu::always_inline]] inline void bin_lanes(const Strip<Value>& strip, const Value* source,
                                             int64_t column, Bins<kLanes>& bin,
                                             Words<kLanes>& valid) {
  const Bins<kLanes> last = Bins<kLanes>{} + (strip.bins - 1);
  if constexpr (std::is_same_v<Value, uint8_t>) {
    bin = __builtin_convertvector((load_vector<vector_of<uint8_t, kLanes>>(source)), Bins<kLanes>);
    valid = (Words<kLanes>)(bin <= last) & 1u;
  } else {
    using Values = vector_of<Value, kLanes>;
    const auto low = load_vector<Values>(strip.low + column);
    const auto high = load_vector<Values>(strip.high + column);
    auto value = load_vector<Values>(source);
    if (strip.clip) {
      value = value < low ? low : value;
      value = value > high ? high : value;
    }
    valid = __builtin_convertvector((value >= low) & (value <= high), Words<kLanes>) & 1u;
    bin = __builtin_convertvector((value - low) * load_vector<Values>(strip.scale + column),
                                  Bins<kLanes>);
    bin = bin < last ? bin : last;
  }
}

// 16 rows of a group of columns as they can be loaded: in place, or copied where they are strided,
// in half precision or fewer than a group. Rows past the end repeat the first: whoever counts them
// leaves them out.
template <typename Value, int kColumns>
struct Tile {
  const Value* rows[kRows];
  int row_count;
  Value copy[kRows * kColumns];

  [[gnu::always_inline]] void load(const Strip<Value>& strip, int64_t row, int64_t column) {
    row_count = static_cast<int>(std::min<int64_t>(kRows, strip.rows - row));
    const int64_t offset = row * strip.row_stride + column * strip.column_stride;
    const bool whole = strip.column_stride == 1 && strip.columns - column >= kColumns;
    if (strip.storage == Storage::value && whole && row_count == kRows) [[likely]] {
      const Value* first = static_cast<const Value*>(strip.x) + offset;
      for (int r = 0; r < kRows; ++r) {
        rows[r] = first + r * strip.row_stride;
        __builtin_prefetch(rows[r] + kPrefetchRows * strip.row_stride);
      }
      return;
    }
    for (int r = 0; r < kRows; ++r) rows[r] = copy + (r < row_count ? r : 0) * kColumns;
    switch (strip.storage) {
      case Storage::value:
        return copy_from(static_cast<const Value*>(strip.x) + offset, strip, column);
      case Storage::half:
        return copy_from(static_cast<const Half*>(strip.x) + offset, strip, column);
      case Storage::bfloat16:
        return copy_from(static_cast<const BFloat16*>(strip.x) + offset, strip, column);
    }
  }

  template <typename Stored>
  [[gnu::always_inline]] void copy_from(const Stored* first, const Strip<Value>& strip,
                                        int64_t column) {
    const int64_t columns = std::min<int64_t>(kColumns, strip.columns - column);
    for (int r = 0; r < row_count; ++r) {
      const Stored* source = first + r * strip.row_stride;
      Value* target = copy + r * kColumns;
      if (strip.column_stride == 1 && columns == kColumns) {  // vectorises
        for (int c = 0; c < kColumns; ++c) target[c] = static_cast<Value>(source[c]);
      } else {
        for (int64_t c = 0; c < kColumns; ++c) {
          target[c] = c < columns ? static_cast<Value>(source[c * strip.column_stride]) : Value{};
        }
      }
    }
  }
};

constexpr int words_of(int bins) { return (bins + kWordBits - 1) / kWordBits; }
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

// Adds a tile to the counts of its group, one for each word.
template <int kLanes, int kHalves, bool kOneWord, typename Value>
[[gnu::always_inline]] inline void add_tile(const Strip<Value>& strip, int64_t row, int64_t column,
                                            int words, BitCounts<Words<kLanes>>* states) {
  Tile<Value, kHalves * kLanes> tile;
  tile.load(strip, row, column);
  Words<kLanes> ones[kRows];  // bit bin % 32, or bin + 16 in the second half
  Bins<kLanes> upper[kRows];  // bin / 32
  for (int r = 0; r < kRows; ++r) {
    Bins<kLanes> bin;
    Words<kLanes> valid;
    bin_lanes<Value, kLanes>(strip, tile.rows[r], column, bin, valid);
    ones[r] = valid << (Words<kLanes>)(bin & (kWordBits / kHalves - 1));
    if constexpr (kHalves == 2) {
      bin_lanes<Value, kLanes>(strip, tile.rows[r] + kLanes, column + kLanes, bin, valid);
      ones[r] |= (valid << 16) << (Words<kLanes>)(bin & 15);
    }
    if constexpr (!kOneWord) upper[r] = bin >> 5;
  }
  for (int r = tile.row_count; r < kRows; ++r) ones[r] = Words<kLanes>{};
  if constexpr (kOneWord) {
    states->add(ones);
  } else {
    for (int w = 0; w < words; ++w) {
      Words<kLanes> own[kRows];
      for (int r = 0; r < kRows; ++r) own[r] = ones[r] & (Words<kLanes>)(upper[r] == w);
      states[w].add(own);
    }
  }
}

// Counts a strip into counts [columns, bins] with a bit for each bin.
template <int kLanes, int kHalves, bool kOneWord, typename Value>
[[gnu::always_inline]] inline void count_by_carry_save(Strip<Value> strip, int64_t* counts,
                                                       void* workspace) {
  constexpr int kGroup = kHalves * kLanes;
  const int words = words_of(strip.bins);
  const int64_t states_used = (strip.columns + kGroup - 1) / kGroup * words;
  auto* states = static_cast<BitCounts<Words<kLanes>>*>(workspace);  // [groups, words]
  const int64_t rows = strip.rows;

  for (int64_t begin = 0; begin < rows; begin += BitCounts<Words<kLanes>>::kMaxRows) {
    strip.rows = std::min(begin + BitCounts<Words<kLanes>>::kMaxRows, rows);
    for (int64_t s = 0; s < states_used; ++s) states[s].clear();
    for (int64_t row = begin; row < strip.rows; row += kRows) {
      for (int64_t s = 0; s < states_used; s += words) {
        add_tile<kLanes, kHalves, kOneWord>(strip, row, s / words * kGroup, words, states + s);
      }
      if ((row - begin) / kRows % 16 != 15 && row + kRows < strip.rows) continue;
      for (int64_t s = 0; s < states_used; ++s) states[s].settle();
    }
    for (int64_t s = 0; s < states_used; ++s) {
      const int64_t column = s / words * kGroup;
      read_counts<kLanes>(states[s], static_cast<int>(s % words), kHalves, strip.columns - column,
                          strip.bins, counts + column * strip.bins);
    }
  }
}

// Counts a strip of any number of uniform bins with one counter for each, and one more for what has
// no bin, so that no branch is needed.
template <int kLanes, typename Value>
[[gnu::always_inline]] inline void count_by_counters(const Strip<Value>& strip, int64_t* counts,
                                                     void* workspace) {
  constexpr int64_t kMaxRows = int64_t{1} << 31;  // of 32-bit counters
  const int32_t slots = strip.bins + 1;
  auto* counters = static_cast<uint32_t*>(workspace);  // [columns of whole groups, slots]
  const int64_t padded = (strip.columns + kLanes - 1) / kLanes * kLanes;
  for (int64_t begin = 0; begin < strip.rows; begin += kMaxRows) {
    Strip<Value> part = strip;
    part.rows = std::min(begin + kMaxRows, strip.rows);
    std::fill_n(counters, padded * slots, 0u);
    for (int64_t row = begin; row < part.rows; row += kRows) {
      for (int64_t column = 0; column < padded; column += kLanes) {
        Tile<Value, kLanes> tile;
        tile.load(part, row, column);
        alignas(64) int32_t bins[kRows][kLanes];
        for (int r = 0; r < tile.row_count; ++r) {
          Bins<kLanes> bin;
          Words<kLanes> valid;
          bin_lanes<Value, kLanes>(strip, tile.rows[r], column, bin, valid);
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

template <int kLanes, typename Value>
[[gnu::always_inline]] inline void count_strip(const Strip<Value>& strip, int64_t* counts,
                                               void* workspace) {
  if (strip.bins <= kWordBits / 2) {
    count_by_carry_save<kLanes, 2, true>(strip, counts, workspace);
  } else if (strip.bins <= kWordBits) {
    count_by_carry_save<kLanes, 1, true>(strip, counts, workspace);
  } else if (strip.bins <= max_carry_save_bins(kLanes)) {
    count_by_carry_save<kLanes, 1, false>(strip, counts, workspace);
  } else {
    count_by_counters<kLanes>(strip, counts, workspace);
  }
}

// Lanes of 32 bits, and count_strip in their width, for each capability.
template <typename Value>
struct Target {
  int lanes;
  void (*count_strip)(const Strip<Value>&, int64_t*, void*);
};

template <typename Value>
void count_strip_portable(const Strip<Value>& strip, int64_t* counts, void* workspace) {
  count_strip<4>(strip, counts, workspace);
}
#if defined(__x86_64__)
template <typename Value>
SIMMIM_TARGET_AVX2 void count_strip_avx2(const Strip<Value>& strip, int64_t* counts,
                                         void* workspace) {
  count_strip<8>(strip, counts, workspace);
}
template <typename Value>
SIMMIM_TARGET_AVX512 void count_strip_avx512(const Strip<Value>& strip, int64_t* counts,
                                             void* workspace) {
  count_strip<16>(strip, counts, workspace);
}
#endif

template <typename Value>
Target<Value> choose_target() {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512) return {16, count_strip_avx512<Value>};
  if (cpu_capability() >= CpuCapability::avx2) return {8, count_strip_avx2<Value>};
#endif
  return {4, count_strip_portable<Value>};
}

template <typename Stored>
constexpr Storage storage_of() {
  return std::is_same_v<Stored, Half>       ? Storage::half
         : std::is_same_v<Stored, BFloat16> ? Storage::bfloat16
                                            : Storage::value;
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
  using Value = std::conditional_t<std::is_same_v<Stored, uint8_t>, uint8_t, compute_t<Stored>>;
  if (args.binning.edges != nullptr) {
    for (int64_t f = feature_begin; f < feature_end; ++f) {
      count_by_search(args, f, sample_begin, sample_end);
    }
    return;
  }
  const Target<Value> target = choose_target<Value>();
  const int32_t bins = args.binning.bins;
  const int64_t group = 2 * target.lanes;
  const int64_t column_bytes = bins <= max_carry_save_bins(target.lanes)
                                   ? 17 * 4 * words_of(bins) / halves_of(bins)
                                   : 4 * (int64_t{bins} + 1);
  const int64_t width = std::max(kStateBytes / column_bytes / group, int64_t{1}) * group;
  std::vector<CacheLine> workspace((width * column_bytes + 63) / 64);
  std::vector<Value> low(width), high(width), scale(width);

  // Samples side by side, as the codes of Discretized: fold each feature into rows of one group.
  const int64_t samples = sample_end - sample_begin;
  const bool fold = args.sample_stride == 1 && (args.feature_stride != 1 || args.features == 1);
  const int64_t columns_at_once = fold ? 1 : width;
  std::vector<int64_t> folded(fold ? group * bins : 0);

  for (int64_t f = feature_begin; f < feature_end; f += columns_at_once) {
    const int64_t features = std::min(columns_at_once, feature_end - f);
    Strip<Value> strip{args.x + f * args.feature_stride + sample_begin * args.sample_stride,
                       storage_of<Stored>(),
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
    strip.x = static_cast<const Stored*>(strip.x) + strip.rows * group;  // what fills no row
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

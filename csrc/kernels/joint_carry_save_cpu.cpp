// Samples are sorted by x, so that those of one x bin form a run; y becomes one bit of a word for
// each of its bins, several features to a word. Adding up the words of a run, bit by bit, then
// gives one row of the joint counts of a whole vector of y features. Work grows with the bins of y
// alone.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "carry_save.h"
#include "cpu_capability.h"
#include "joint_carry_save.h"

namespace simmim {
namespace {

constexpr int kWordBits = 32;
constexpr int kUnit = BitCounts<uint32_t>::kRows;  // samples added at a time
constexpr int64_t kChunk = 16384;  // samples: their words, at most 1 MiB, stay in the L2 cache
constexpr int64_t kTallyBytes = 4 * 1024 * 1024;  // of counts that wait for the next chunk
constexpr int64_t kMostX = 32;                    // features sorted at a time

constexpr int bits_of(int32_t bins) { return bins <= 8 ? 8 : bins <= 16 ? 16 : 32; }

// The samples of a chunk sorted by x. Each bin's run is filled up to whole units.
struct Order {
  uint16_t* samples;
  int unit_begin[kWordBits + 1];  // of each run
};

// What fills a run up is number `samples`. The two halves of the chunk fill parts of their own of
// each run, so that consecutive samples of one bin need not wait for each other.
void sort_by_bin(const uint8_t* codes, int samples, int32_t bins, Order& order) {
  const int half = samples / 2;
  int counts[2][256] = {}, next[2][256];
  for (int i = 0; i < samples - half; ++i) {
    if (i < half) ++counts[0][codes[i]];
    ++counts[1][codes[half + i]];
  }
  int unit = 0;
  for (int bin = 0; bin < bins; ++bin) {
    order.unit_begin[bin] = unit;
    next[0][bin] = unit * kUnit;
    next[1][bin] = unit * kUnit + counts[0][bin];
    unit += (counts[0][bin] + counts[1][bin] + kUnit - 1) / kUnit;
  }
  order.unit_begin[bins] = unit;
  // A code that is no bin goes behind all runs, where nothing is read.
  for (int part = 0; part < 2; ++part) std::fill(next[part] + bins, next[part] + 256, unit * kUnit);
  for (int i = 0; i < samples - half; ++i) {
    if (i < half) order.samples[next[0][codes[i]]++] = static_cast<uint16_t>(i);
    order.samples[next[1][codes[half + i]]++] = static_cast<uint16_t>(half + i);
  }
  for (int bin = 0; bin < bins; ++bin) {
    std::fill(order.samples + next[1][bin], order.samples + order.unit_begin[bin + 1] * kUnit,
              static_cast<uint16_t>(samples));
  }
}

// The y features that share a vector of words: feature f has its bits in lane f % lanes.
struct Group {
  int64_t begin;
  int64_t size;
};

// Writes words [samples + 1, lanes], the last one 0, of samples sample_begin and following.
template <int kLanes>
[[gnu::always_inline]] inline void write_words(const CodePair& codes, const Group& group,
                                               int64_t sample_begin, int samples,
                                               vector_of<uint32_t, kLanes>* words) {
  constexpr int kTile = 256;  // samples whose words stay in the L1 cache
  const int bits = bits_of(codes.y_bins);
  words[samples] = vector_of<uint32_t, kLanes>{};
  for (int begin = 0; begin < samples; begin += kTile) {
    const int end = std::min(begin + kTile, samples);
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t tile[kTile] = {};
      for (int64_t f = lane, shift = 0; f < group.size; f += kLanes, shift += bits) {
        const uint8_t* code = codes.y + (group.begin + f) * codes.samples + sample_begin + begin;
        for (int i = 0; i < end - begin; ++i) {
          const uint32_t valid = code[i] < codes.y_bins;
          tile[i] |= valid << (code[i] & (kWordBits - 1)) << shift;
        }
      }
      auto* word = reinterpret_cast<uint32_t*>(words + begin) + lane;
      for (int i = 0; i < end - begin; ++i) word[int64_t{i} * kLanes] = tile[i];
    }
  }
}

// The words of samples, fetched one by one as they are added.
template <typename Words>
struct RowsOf {
  const Words* words;
  const uint16_t* samples;
  [[gnu::always_inline]] Words operator[](int i) const { return words[samples[i]]; }
};

// Adds the counts of each run to tally [x_bins, 32 bits, lanes].
template <int kLanes>
[[gnu::always_inline]] inline void add_runs(const vector_of<uint32_t, kLanes>* words,
                                            const Order& order, int32_t bins,
                                            vector_of<uint32_t, kLanes>* tally) {
  using Words = vector_of<uint32_t, kLanes>;
  for (int bin = 0; bin < bins; ++bin, tally += kWordBits) {
    const int units = order.unit_begin[bin + 1] - order.unit_begin[bin];
    const uint16_t* sample = order.samples + order.unit_begin[bin] * kUnit;
    BitCounts<Words> state;
    state.clear();
    for (int unit = 1; unit <= units; ++unit, sample += kUnit) {
      state.add(RowsOf<Words>{words, sample});
      if (unit % 16 == 0) state.settle();
    }
    state.settle();
    for (int octet = 0; octet < (units < 16 ? 1 : 2); ++octet) {
      Words bytes[8];
      state.bytes_of_counts(octet, bytes);
      for (int bit = 0; bit < kWordBits; ++bit) {
        tally[bit] += (bytes[bit % 8] >> (bit / 8 * 8) & 0xffu) << (8 * octet);
      }
    }
  }
}

template <int kLanes>
[[gnu::always_inline]] inline void visit_group(const CodePair& codes, bool symmetric, int64_t x,
                                               const Group& group,
                                               const vector_of<uint32_t, kLanes>* tally,
                                               int64_t* counts, const VisitPair& visit) {
  for (int64_t f = symmetric ? std::max<int64_t>(0, x + 1 - group.begin) : 0; f < group.size; ++f) {
    const auto* bit = reinterpret_cast<const uint32_t*>(tally + f / kLanes * bits_of(codes.y_bins));
    int64_t* to = counts;
    for (int a = 0; a < codes.x_bins; ++a, bit += kWordBits * kLanes) {
      for (int b = 0; b < codes.y_bins; ++b) *to++ = bit[b * kLanes + f % kLanes];
    }
    visit(x, group.begin + f, counts);
  }
}

// Words of one chunk of samples and one group of y features serve all x features of the block;
// an order serves all groups. Counts of several chunks wait in a tally for each x and group.
template <int kLanes>
[[gnu::always_inline]] inline void count_block(const CodePair& codes, bool symmetric,
                                               const PairBlock& block, const VisitPair& visit) {
  using Words = vector_of<uint32_t, kLanes>;
  const bool one_chunk = codes.samples <= kChunk;
  const int64_t group_size = kLanes * kWordBits / bits_of(codes.y_bins);
  const int64_t tally_size = int64_t{codes.x_bins} * kWordBits;  // of one x and group
  const int64_t xs = std::min(kMostX, block.x_end - block.x_begin);
  const int64_t tallies = one_chunk ? 1 : kTallyBytes / (tally_size * int64_t{sizeof(Words)});
  const int64_t ys =
      one_chunk ? block.y_end - block.y_begin : std::max<int64_t>(1, tallies / xs) * group_size;
  const int64_t order_size = kChunk + codes.x_bins * int64_t{kUnit};

  const int64_t word_count = std::min(codes.samples, kChunk) + 1;
  std::vector<CacheLine> workspace(lines_of<Words>(word_count) +
                                   lines_of<Words>(tallies * tally_size));
  auto* words = reinterpret_cast<Words*>(workspace.data());
  auto* tally = reinterpret_cast<Words*>(workspace.data() + lines_of<Words>(word_count));
  std::vector<uint16_t> sorted(xs * order_size);
  std::vector<Order> orders(xs);
  for (int64_t i = 0; i < xs; ++i) orders[i].samples = sorted.data() + i * order_size;
  std::vector<int64_t> counts(static_cast<size_t>(codes.x_bins) * codes.y_bins);

  for (int64_t x0 = block.x_begin; x0 < block.x_end; x0 += xs) {
    const int64_t x_end = std::min(x0 + xs, block.x_end);
    int64_t y0 = symmetric ? std::max(block.y_begin, x0 + 1) : block.y_begin;
    for (; y0 < block.y_end; y0 += ys) {
      const int64_t y_end = std::min(y0 + ys, block.y_end);
      for (int64_t begin = 0; begin < codes.samples; begin += kChunk) {
        const int samples = static_cast<int>(std::min(kChunk, codes.samples - begin));
        const bool last = begin + samples == codes.samples;
        for (int64_t x = x0; x < x_end; ++x) {
          sort_by_bin(codes.x + x * codes.samples + begin, samples, codes.x_bins, orders[x - x0]);
        }
        Words* own = tally;
        for (int64_t y = y0; y < y_end; y += group_size) {
          const Group group{y, std::min(group_size, y_end - y)};
          write_words<kLanes>(codes, group, begin, samples, words);
          for (int64_t x = x0; x < x_end; ++x, own += one_chunk ? 0 : tally_size) {
            if (symmetric && y + group.size <= x + 1) continue;
            if (begin == 0) std::fill(own, own + tally_size, Words{});
            add_runs<kLanes>(words, orders[x - x0], codes.x_bins, own);
            if (last) visit_group<kLanes>(codes, symmetric, x, group, own, counts.data(), visit);
          }
        }
      }
    }
  }
}

void count_block_portable(const CodePair& codes, bool symmetric, const PairBlock& block,
                          const VisitPair& visit) {
  count_block<4>(codes, symmetric, block, visit);
}
#if defined(__x86_64__)
SIMMIM_TARGET_AVX2 void count_block_avx2(const CodePair& codes, bool symmetric,
                                         const PairBlock& block, const VisitPair& visit) {
  count_block<8>(codes, symmetric, block, visit);
}
SIMMIM_TARGET_AVX512 void count_block_avx512(const CodePair& codes, bool symmetric,
                                             const PairBlock& block, const VisitPair& visit) {
  count_block<16>(codes, symmetric, block, visit);
}
#endif

}  // namespace

bool carry_save_pays(const CodePair& codes) {
  constexpr int64_t kFewest = 8;  // features of y, to fill enough of a vector; measured
  return std::max(codes.x_bins, codes.y_bins) <= kWordBits && codes.y_features >= kFewest &&
         codes.samples < (int64_t{1} << 32);  // the tally's counters
}

void count_pairs_by_carry_save(const CodePair& codes, bool symmetric, const PairBlock& block,
                               const VisitPair& visit) {
#if defined(__x86_64__)
  if (cpu_capability() >= CpuCapability::avx512) {
    return count_block_avx512(codes, symmetric, block, visit);
  }
  if (cpu_capability() >= CpuCapability::avx2) {
    return count_block_avx2(codes, symmetric, block, visit);
  }
#endif
  count_block_portable(codes, symmetric, block, visit);
}

}  // namespace simmim

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
constexpr int64_t kChunk = 16384;                 // samples whose words stay in the L2 cache
constexpr int64_t kTallyBytes = 4 * 1024 * 1024;  // of counts
constexpr int64_t kMostX = 32;                    // features sorted at a time

constexpr int bits_of(int32_t bins) { return bins <= 8 ? 8 : bins <= 16 ? 16 : 32; }

// Where the runs of one x feature lie in its order.
struct Runs {
  uint16_t begin[33];  // in units of 16 samples; a run is padded to whole units
};

template <int kLanes>
struct Scratch {
  using Words = vector_of<uint32_t, kLanes>;
  std::vector<unsigned char> word_bytes, tally_bytes;
  std::vector<uint16_t> order;

  static Words* aligned(std::vector<unsigned char>& bytes, int64_t count) {
    bytes.resize(count * sizeof(Words) + 64);
    const auto address = reinterpret_cast<uintptr_t>(bytes.data());
    return reinterpret_cast<Words*>((address + 63) / 64 * 64);
  }
};

// The samples of a chunk by bin of x, each run filled up with `samples`, the word that is 0.
inline void sort_by_bin(const uint8_t* codes, int samples, int32_t bins, uint16_t* order,
                        Runs& runs) {
  uint32_t counts[256] = {}, next[256];
  for (int i = 0; i < samples; ++i) ++counts[codes[i]];
  uint32_t begin = 0;
  for (int bin = 0; bin < bins; ++bin) {
    runs.begin[bin] = static_cast<uint16_t>(begin / 16);
    next[bin] = begin;
    begin += (counts[bin] + 15) / 16 * 16;
  }
  runs.begin[bins] = static_cast<uint16_t>(begin / 16);
  for (int bin = bins; bin < 256; ++bin) next[bin] = begin;  // no bin: behind all runs
  for (int i = 0; i < samples; ++i) order[next[codes[i]]++] = static_cast<uint16_t>(i);
  for (int bin = 0; bin < bins; ++bin) {
    std::fill(order + next[bin], order + runs.begin[bin + 1] * 16, static_cast<uint16_t>(samples));
  }
}

// words [samples + 1, lanes]: feature f of the group sets bits in lane f % lanes.
template <int kLanes>
[[gnu::always_inline]] inline void write_words(const CodePair& codes, int64_t first, int64_t begin,
                                               int samples, int64_t features,
                                               vector_of<uint32_t, kLanes>* words) {
  const int bits = bits_of(codes.y_bins);
  std::fill(words, words + samples + 1, vector_of<uint32_t, kLanes>{});
  auto* lanes = reinterpret_cast<uint32_t*>(words);
  for (int64_t f = 0; f < features; ++f) {
    uint32_t bit_of[256] = {};
    for (int bin = 0; bin < codes.y_bins; ++bin) bit_of[bin] = 1u << (f / kLanes * bits + bin);
    const uint8_t* source = codes.y + (first + f) * codes.samples + begin;
    uint32_t* target = lanes + f % kLanes;
    for (int i = 0; i < samples; ++i) target[int64_t{i} * kLanes] |= bit_of[source[i]];
  }
}

// Adds the counts of each run to tally [x_bins, 32 bits, lanes].
template <int kLanes>
[[gnu::always_inline]] inline void add_runs(const vector_of<uint32_t, kLanes>* words,
                                            const uint16_t* order, const Runs& runs, int32_t bins,
                                            vector_of<uint32_t, kLanes>* tally) {
  using Words = vector_of<uint32_t, kLanes>;
  for (int bin = 0; bin < bins; ++bin, tally += kWordBits) {
    const int begin = runs.begin[bin], end = runs.begin[bin + 1];
    if (begin == end) continue;
    BitCounts<Words> state;
    state.clear();
    for (int unit = begin; unit < end; ++unit) {
      Words own[16];
      for (int r = 0; r < 16; ++r) own[r] = words[order[unit * 16 + r]];
      state.add(own);
      if ((unit - begin) % 16 == 15) state.settle();
    }
    state.settle();
    for (int octet = 0; octet < (end - begin >= 16 ? 2 : 1); ++octet) {
      Words bytes[8];
      state.bytes_of_counts(octet, bytes);
      for (int bit = 0; bit < kWordBits; ++bit) {
        tally[bit] += (bytes[bit % 8] >> (bit / 8 * 8) & 0xffu) << (8 * octet);
      }
    }
  }
}

template <int kLanes>
[[gnu::always_inline]] inline void count_block(const CodePair& codes, bool symmetric,
                                               const PairBlock& block, const VisitPair& visit) {
  using Words = vector_of<uint32_t, kLanes>;
  const int bits = bits_of(codes.y_bins);
  const int64_t group = kLanes * kWordBits / bits;
  const int64_t state = int64_t{codes.x_bins} * kWordBits;  // vectors of counts of x and a group
  const int64_t order_size = kChunk + 16 * int64_t{codes.x_bins} + 16;
  const int64_t xs = std::min(kMostX, block.x_end - block.x_begin);
  const int64_t most_groups = kTallyBytes / static_cast<int64_t>(sizeof(Words)) / state / xs;
  const int64_t groups = std::clamp<int64_t>((block.y_end - block.y_begin + group - 1) / group, 1,
                                             std::max<int64_t>(1, most_groups));

  Scratch<kLanes> scratch;
  Words* words = scratch.aligned(scratch.word_bytes, kChunk + 1);
  Words* tally = scratch.aligned(scratch.tally_bytes, xs * groups * state);
  scratch.order.resize(xs * order_size);
  std::vector<Runs> runs(xs);
  std::vector<int64_t> counts(static_cast<size_t>(codes.x_bins) * codes.y_bins);

  for (int64_t x0 = block.x_begin; x0 < block.x_end; x0 += xs) {
    const int64_t x_end = std::min(x0 + xs, block.x_end);
    const int64_t y_begin = symmetric ? std::max(block.y_begin, x0 + 1) : block.y_begin;
    for (int64_t y0 = y_begin; y0 < block.y_end; y0 += groups * group) {
      const int64_t y_end = std::min(y0 + groups * group, block.y_end);
      std::fill(tally, tally + xs * groups * state, Words{});
      for (int64_t begin = 0; begin < codes.samples; begin += kChunk) {
        const int samples = static_cast<int>(std::min(kChunk, codes.samples - begin));
        for (int64_t x = x0; x < x_end; ++x) {
          sort_by_bin(codes.x + x * codes.samples + begin, samples, codes.x_bins,
                      scratch.order.data() + (x - x0) * order_size, runs[x - x0]);
        }
        for (int64_t y = y0; y < y_end; y += group) {
          const int64_t features = std::min(group, y_end - y);
          write_words<kLanes>(codes, y, begin, samples, features, words);
          for (int64_t x = x0; x < x_end; ++x) {
            if (symmetric && y + features - 1 <= x) continue;
            add_runs<kLanes>(words, scratch.order.data() + (x - x0) * order_size, runs[x - x0],
                             codes.x_bins, tally + ((x - x0) * groups + (y - y0) / group) * state);
          }
        }
      }
      for (int64_t x = x0; x < x_end; ++x) {
        for (int64_t y = symmetric ? std::max(y0, x + 1) : y0; y < y_end; ++y) {
          const int64_t feature = (y - y0) % group;
          const auto* own = reinterpret_cast<const uint32_t*>(
                                tally + ((x - x0) * groups + (y - y0) / group) * state +
                                feature / kLanes * bits) +
                            feature % kLanes;
          for (int a = 0; a < codes.x_bins; ++a) {
            for (int b = 0; b < codes.y_bins; ++b) {
              counts[a * codes.y_bins + b] = own[(int64_t{a} * kWordBits + b) * kLanes];
            }
          }
          visit(x, y, counts.data());
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
  return std::max(codes.x_bins, codes.y_bins) <= kWordBits && codes.y_features >= 8 &&
         codes.samples >= 64 * codes.x_bins && codes.samples < (int64_t{1} << 32);
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

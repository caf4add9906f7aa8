// Samples are sorted by x, so that those of one x bin form a run; y becomes one bit of a word for
// each of its bins, several features to a word. Adding up the words of a run, bit by bit, then
// gives one row of the joint counts of a whole vector of y features. Work grows with the bins of y
// alone. Where samples come in groups, each group has runs of its own.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_capability.h"
#include "joint_carry_save.h"
#include "vectors.h"

namespace simmim {
namespace {

constexpr int kWordBits = 32;
constexpr int kUnit = 16;          // samples added at a time
constexpr int64_t kChunk = 16384;  // samples: their words, at most 1 MiB, stay in the L2 cache
constexpr int64_t kTallyBytes = 8 * 1024 * 1024;  // of counts that wait for the next chunk
constexpr int64_t kMostRuns = 2048;               // whose tally takes 4 MiB
// Features sorted at a time: they share the words of y. Where there are several chunks, an order
// must serve many groups of y too, and their counts wait.
constexpr int64_t kMostX = 128, kMostXOfChunks = 32;
constexpr int64_t kFewestX = 4;  // worth counting y without x, to skip a run of each

constexpr int bits_of(int32_t bins) { return bins <= 8 ? 8 : bins <= 16 ? 16 : 32; }

// The samples of a chunk sorted by group and x. Each run is filled up to whole units.
struct Order {
  uint16_t* samples;
  int32_t* unit_begin;  // [runs + 1]
};

// The part of a group of samples that lies in [begin, begin + samples), counted from begin.
struct Segment {
  int begin, end;
  Segment(const SampleGroups& groups, int64_t group, int64_t chunk_begin, int64_t samples)
      : begin(static_cast<int>(std::clamp(groups.begin[group] - chunk_begin, int64_t{0}, samples))),
        end(static_cast<int>(
            std::clamp(groups.begin[group + 1] - chunk_begin, int64_t{0}, samples))) {}
};

// Sorts a segment into runs from `unit` on; returns the unit behind them. What fills a run up is
// sample number `filler`. The two halves of the segment fill parts of their own of each run, so
// that consecutive samples of one bin need not wait for each other.
int sort_segment(const uint8_t* codes, const Segment& segment, int32_t bins, int unit, int filler,
                 uint16_t* to, int32_t* unit_begin) {
  const int half = (segment.end - segment.begin) / 2, middle = segment.begin + half;
  const int rest = segment.end - middle;  // half or one more
  int counts[2][kWordBits + 1] = {}, next[2][kWordBits + 1];
  const auto bin_of = [&](int i) { return std::min<int>(codes[i], bins); };
  for (int i = 0; i < rest; ++i) {
    if (i < half) ++counts[0][bin_of(segment.begin + i)];
    ++counts[1][bin_of(middle + i)];
  }
  for (int bin = 0; bin < bins; ++bin) {
    unit_begin[bin] = unit;
    next[0][bin] = unit * kUnit;
    next[1][bin] = unit * kUnit + counts[0][bin];
    unit += (counts[0][bin] + counts[1][bin] + kUnit - 1) / kUnit;
  }
  // A code that is no bin goes behind all runs, where the next segment or nothing is read.
  next[0][bins] = unit * kUnit;
  next[1][bins] = unit * kUnit + counts[0][bins];
  for (int i = 0; i < rest; ++i) {
    if (i < half)
      to[next[0][bin_of(segment.begin + i)]++] = static_cast<uint16_t>(segment.begin + i);
    to[next[1][bin_of(middle + i)]++] = static_cast<uint16_t>(middle + i);
  }
  for (int bin = 0; bin < bins; ++bin) {
    const int end = (bin + 1 < bins ? unit_begin[bin + 1] : unit) * kUnit;
    std::fill(to + next[1][bin], to + end, static_cast<uint16_t>(filler));
  }
  return unit;
}

void sort_chunk(const CodePair& codes, const SampleGroups& groups, int64_t x, int64_t begin,
                int samples, Order& order) {
  int unit = 0;
  for (int64_t group = 0; group < groups.count; ++group) {
    const Segment segment(groups, group, begin, samples);
    unit = sort_segment(codes.x + x * codes.samples + begin, segment, codes.x_bins, unit, samples,
                        order.samples, order.unit_begin + group * codes.x_bins);
  }
  order.unit_begin[groups.count * codes.x_bins] = unit;
}

// The fullest bin of each group of samples, whose counts follow from those of the other bins and of
// y alone; -1 where a sample has no bin, and they do not.
void choose_skipped(const CodePair& codes, const SampleGroups& groups, int64_t x,
                    int32_t* skipped) {
  for (int64_t group = 0; group < groups.count; ++group) {
    int64_t counts[256] = {};
    const uint8_t* code = codes.x + x * codes.samples;
    for (int64_t i = groups.begin[group]; i < groups.begin[group + 1]; ++i) ++counts[code[i]];
    const int64_t* fullest = std::max_element(counts, counts + codes.x_bins);
    const int64_t valid = std::accumulate(counts, counts + codes.x_bins, int64_t{0});
    const bool whole = valid == groups.begin[group + 1] - groups.begin[group];
    skipped[group] = whole ? static_cast<int32_t>(fullest - counts) : -1;
  }
}

}  // namespace
}  // namespace simmim

#define SIMMIM_KERNEL "joint_block.h"
#include "every_target.h"

namespace simmim {

bool carry_save_pays(const CodePair& codes, int64_t groups) {
  constexpr int64_t kFewest = 8;  // features of y, to fill enough of a vector; measured
  const int64_t runs = groups * codes.x_bins;
  return std::max(codes.x_bins, codes.y_bins) <= kWordBits && codes.y_features >= kFewest &&
         codes.samples < (int64_t{1} << 32) &&  // the tally's counters
         (groups == 1 || (runs <= kMostRuns && 4 * runs <= codes.samples));
}

void count_pairs_by_carry_save(const CodePair& codes, const SampleGroups& groups, bool symmetric,
                               const PairBlock& block, const VisitCounts& visit) {
  SIMMIM_BEST_TARGET(count_block, codes, groups, symmetric, block, visit);
}

}  // namespace simmim

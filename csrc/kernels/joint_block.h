// Counts a block of pairs. Part of a kernel: see every_target.h.
#include "bit_counts.h"

using Words = vector_of<uint32_t, kLanes>;

// The y features that share a vector of words: feature f has its bits in lane f % lanes.
struct Group {
  int64_t begin;
  int64_t size;
};

// Writes words [samples + 1, lanes], the last one 0, of samples sample_begin and following.
[[gnu::noinline]] void write_words(const CodePair& codes, const Group& group, int64_t sample_begin,
                                   int samples, Words* words) {
  constexpr int kTile = 256;  // samples whose words stay in the L1 cache
  const int bits = bits_of(codes.y_bins);
  words[samples] = Words{};
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
struct RowsOf {
  const Words* words;
  const uint16_t* samples;
  [[gnu::always_inline]] Words operator[](int i) const { return words[samples[i]]; }
};

// Adds the counts of `units` units of samples, listed in order, to tally [32 bits, lanes].
template <typename Rows>
[[gnu::always_inline]] inline void add_run(int units, Rows&& rows, Words* tally) {
  BitCounts<Words> state;
  state.clear();
  for (int unit = 0; unit < units; unit += 16) {
    state.add_all(std::min(16, units - unit), [&](int i) { return rows(unit + i); });
    state.settle();
  }
  for (int octet = 0; octet < (units < 16 ? 1 : 2); ++octet) {
    Words bytes[8];
    state.bytes_of_counts(octet, bytes);
    for (int bit = 0; bit < kWordBits; ++bit) {
      tally[bit] += (bytes[bit % 8] >> (bit / 8 * 8) & 0xffu) << (8 * octet);
    }
  }
}

// Adds the counts of each run but the skipped ones to tally [runs, 32 bits, lanes].
[[gnu::noinline]] void add_runs(const Words* words, const Order& order, int32_t x_bins,
                                int64_t runs, const int32_t* skipped, Words* tally) {
  int32_t skip = -1;
  for (int64_t run = 0; run < runs; ++run, tally += kWordBits) {
    const int32_t bin = static_cast<int32_t>(run % x_bins);
    if (bin == 0) skip = *skipped++;
    const int units = order.unit_begin[run + 1] - order.unit_begin[run];
    if (bin == skip || units == 0) continue;
    const uint16_t* sample = order.samples + int64_t{order.unit_begin[run]} * kUnit;
    add_run(units, [&](int unit) { return RowsOf{words, sample + int64_t{unit} * kUnit}; }, tally);
  }
}

// Adds the counts of y in each group of samples, whatever x is, to tally [groups, 32 bits, lanes].
[[gnu::noinline]] void add_all(const Words* words, const SampleGroups& groups, int64_t begin,
                               int samples, Words* tally) {
  for (int64_t group = 0; group < groups.count; ++group, tally += kWordBits) {
    const Segment segment(groups, group, begin, samples);
    const int whole = (segment.end - segment.begin) / kUnit;
    add_run(whole, [&](int unit) { return words + segment.begin + unit * kUnit; }, tally);
    Words last[kUnit];
    for (int i = 0; i < kUnit; ++i) {
      const int sample = segment.begin + whole * kUnit + i;
      last[i] = words[sample < segment.end ? sample : samples];
    }
    add_run(1, [&](int) { return last; }, tally);
  }
}

// The counts of the skipped runs: what the others leave of all.
[[gnu::noinline]] void derive_skipped(const Words* all, int32_t x_bins, int64_t groups,
                                      const int32_t* skipped, Words* tally) {
  for (int64_t group = 0; group < groups; ++group, all += kWordBits, tally += x_bins * kWordBits) {
    if (skipped[group] < 0) continue;
    for (int bit = 0; bit < kWordBits; ++bit) {
      Words rest = all[bit];
      for (int32_t bin = 0; bin < x_bins; ++bin) rest -= tally[bin * kWordBits + bit];
      tally[skipped[group] * kWordBits + bit] = rest;  // was 0
    }
  }
}

// Words of one chunk of samples and one group of y features serve all x features of the block;
// an order serves all groups. Counts of several chunks wait in a tally for each x and group.
void count_block(const CodePair& codes, const SampleGroups& groups, bool symmetric,
                 const PairBlock& block, const VisitCounts& visit) {
  const bool one_chunk = codes.samples <= kChunk;
  const int64_t bits = bits_of(codes.y_bins), group_size = kLanes * kWordBits / bits;
  const int64_t runs = groups.count * codes.x_bins;
  const int64_t tally_size = runs * kWordBits, all_size = groups.count * kWordBits;
  const int64_t xs = std::min(one_chunk ? kMostX : kMostXOfChunks, block.x_end - block.x_begin);
  const int64_t y_groups_at_once = one_chunk
                                       ? 1
                                       : std::max<int64_t>(1, kTallyBytes / int64_t{sizeof(Words)} /
                                                                  (xs * tally_size + all_size));
  const int64_t ys = one_chunk ? block.y_end - block.y_begin : y_groups_at_once * group_size;
  const int64_t tallies = one_chunk ? 1 : xs * y_groups_at_once;
  const int64_t order_size = std::min(codes.samples, kChunk) + runs * kUnit;

  const int64_t word_lines = lines_of<Words>(std::min(codes.samples, kChunk) + 1);
  const int64_t all_lines = lines_of<Words>(y_groups_at_once * all_size);
  std::vector<CacheLine> workspace(word_lines + all_lines + lines_of<Words>(tallies * tally_size));
  auto* words = reinterpret_cast<Words*>(workspace.data());
  auto* all = reinterpret_cast<Words*>(workspace.data() + word_lines);
  auto* tally = reinterpret_cast<Words*>(workspace.data() + word_lines + all_lines);
  std::vector<uint16_t> sorted(xs * order_size);
  std::vector<int32_t> unit_begin(xs * (runs + 1)), skipped(xs * groups.count, -1);
  std::vector<Order> orders(xs);
  for (int64_t i = 0; i < xs; ++i) {
    orders[i] = {sorted.data() + i * order_size, unit_begin.data() + i * (runs + 1)};
  }

  for (int64_t x0 = block.x_begin; x0 < block.x_end; x0 += xs) {
    const int64_t x_end = std::min(x0 + xs, block.x_end);
    const bool skip = x_end - x0 >= kFewestX;
    for (int64_t x = x0; skip && x < x_end; ++x) {
      choose_skipped(codes, groups, x, skipped.data() + (x - x0) * groups.count);
    }
    if (!skip) std::fill(skipped.begin(), skipped.end(), -1);
    int64_t y0 = symmetric ? std::max(block.y_begin, x0 + 1) : block.y_begin;
    for (; y0 < block.y_end; y0 += ys) {
      const int64_t y_end = std::min(y0 + ys, block.y_end);
      for (int64_t begin = 0; begin < codes.samples; begin += kChunk) {
        const int samples = static_cast<int>(std::min(kChunk, codes.samples - begin));
        const bool last = begin + samples == codes.samples;
        for (int64_t x = x0; x < x_end; ++x) {
          sort_chunk(codes, groups, x, begin, samples, orders[x - x0]);
        }
        Words *own = tally, *own_all = all;
        for (int64_t y = y0; y < y_end; y += group_size, own_all += one_chunk ? 0 : all_size) {
          const Group group{y, std::min(group_size, y_end - y)};
          write_words(codes, group, begin, samples, words);
          if (begin == 0) std::fill(own_all, own_all + all_size, Words{});
          if (skip) add_all(words, groups, begin, samples, own_all);
          for (int64_t x = x0; x < x_end; ++x, own += one_chunk ? 0 : tally_size) {
            if (symmetric && y + group.size <= x + 1) continue;
            const int32_t* skip_runs = skipped.data() + (x - x0) * groups.count;
            if (begin == 0) std::fill(own, own + tally_size, Words{});
            add_runs(words, orders[x - x0], codes.x_bins, runs, skip_runs, own);
            if (!last) continue;
            derive_skipped(own_all, codes.x_bins, groups.count, skip_runs, own);
            visit(x, y, group.size,
                  {reinterpret_cast<const uint32_t*>(own), runs, codes.y_bins, kLanes,
                   kWordBits * kLanes, bits * kLanes});
          }
        }
      }
    }
  }
}

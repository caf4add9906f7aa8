#include <algorithm>
#include <numeric>
#include <vector>

#include "joint.h"
#include "joint_carry_save.h"

namespace simmim {
namespace {

// Joint counts of one pair after another. Counters are 32-bit, one set per sample in flight while
// they are few: consecutive samples often meet the same cell, and would wait for each other.
class JointCounter {
 public:
  explicit JointCounter(const CodePair& codes)
      : codes_(codes),
        row_(codes.y_bins + 1),
        cells_((codes.x_bins + 1) * (codes.y_bins + 1)),
        copies_(cells_ <= 4096 ? 4 : 1),
        counters_(static_cast<size_t>(cells_) * copies_),
        counts_(static_cast<size_t>(codes.x_bins) * codes.y_bins) {}

  // [x_bins, y_bins], valid until the next call.
  const std::vector<int64_t>& count(int64_t x_feature, int64_t y_feature) {
    std::fill(counts_.begin(), counts_.end(), 0);
    const uint8_t* x = codes_.x + x_feature * codes_.samples;
    const uint8_t* y = codes_.y + y_feature * codes_.samples;
    constexpr int64_t kFlush = int64_t{1} << 31;  // before a 32-bit counter can wrap
    for (int64_t begin = 0; begin < codes_.samples; begin += kFlush) {
      const int64_t end = std::min(begin + kFlush, codes_.samples);
      std::fill(counters_.begin(), counters_.end(), 0);
      for (int64_t i = begin; i < end; i += kChunk) {
        add(x + i, y + i, static_cast<int>(std::min(kChunk, end - i)));
      }
      flush();
    }
    return counts_;
  }

 private:
  static constexpr int64_t kChunk = 1024;

  void add(const uint8_t* x, const uint8_t* y, int samples) {
    uint32_t cell[kChunk];
    for (int i = 0; i < samples; ++i) {  // a code that is no bin counts in the last row or column
      const int row = std::min<int>(x[i], codes_.x_bins);
      const int column = std::min<int>(y[i], codes_.y_bins);
      cell[i] = static_cast<uint32_t>(row * row_ + column);
    }
    uint32_t* h = counters_.data();
    int i = 0;
    if (copies_ == 4) {
      for (; i + 4 <= samples; i += 4) {
        ++h[cell[i]];
        ++h[cells_ + cell[i + 1]];
        ++h[2 * cells_ + cell[i + 2]];
        ++h[3 * cells_ + cell[i + 3]];
      }
    }
    for (; i < samples; ++i) ++h[cell[i]];
  }

  void flush() {
    for (int copy = 0; copy < copies_; ++copy) {
      const uint32_t* h = counters_.data() + static_cast<size_t>(copy) * cells_;
      for (int row = 0; row < codes_.x_bins; ++row) {
        int64_t* to = counts_.data() + static_cast<size_t>(row) * codes_.y_bins;
        for (int column = 0; column < codes_.y_bins; ++column) to[column] += h[row * row_ + column];
      }
    }
  }

  const CodePair codes_;
  const int row_, cells_, copies_;
  std::vector<uint32_t> counters_;  // [copies, x_bins + 1, y_bins + 1]
  std::vector<int64_t> counts_;     // [x_bins, y_bins]
};

struct Marginals {
  double x, y;
  int64_t samples;
};

// Of the samples that are valid in both features: from the sums of the rows and of the columns.
Marginals shared_marginals(const EntropyTerms& terms, const int64_t* counts, int32_t x_bins,
                           int32_t y_bins) {
  int64_t rows[256] = {}, columns[256] = {};
  int64_t samples = 0;
  for (int a = 0; a < x_bins; ++a) {
    for (int b = 0; b < y_bins; ++b) {
      const int64_t count = counts[a * y_bins + b];
      rows[a] += count;
      columns[b] += count;
      samples += count;
    }
  }
  if (samples < 2) return {0, 0, samples};
  return {entropy_of_counts(terms, samples, x_bins, rows, x_bins),
          entropy_of_counts(terms, samples, y_bins, columns, y_bins), samples};
}

// Calls visit(x, y_begin, features, counts) until every pair of the block, where symmetric every
// one with y > x, has been among its pairs.
template <typename Visit>
void count_pairs(const CodePair& codes, bool symmetric, const PairBlock& block, Visit&& visit) {
  if (carry_save_pays(codes)) {
    const int64_t all[2] = {0, codes.samples};
    return count_pairs_by_carry_save(codes, {all, 1}, symmetric, block, visit);
  }
  JointCounter counter(codes);
  for (int64_t x = block.x_begin; x < block.x_end; ++x) {
    for (int64_t y = symmetric ? std::max(block.y_begin, x + 1) : block.y_begin; y < block.y_end;
         ++y) {
      visit(x, y, 1,
            JointCounts<int64_t>{counter.count(x, y).data(), codes.x_bins, codes.y_bins, 1,
                                 codes.y_bins, 0});
    }
  }
}

}  // namespace

void joint_histogram_cpu(const JointHistogramArgs& args, const PairBlock& block) {
  const int64_t cells = int64_t{args.codes.x_bins} * args.codes.y_bins;
  count_pairs(args.codes, /*symmetric=*/false, block,
              [&](int64_t x, int64_t y, int64_t features, const auto& counts) {
                for (int64_t f = 0; f < features; ++f) {
                  counts.copy(f, args.counts + (x * args.codes.y_features + y + f) * cells);
                }
              });
}

int64_t pairwise_information_cpu(const PairwiseInformationArgs& args, const PairBlock& block) {
  const CodePair& codes = args.codes;
  const int64_t cells = int64_t{codes.x_bins} * codes.y_bins;
  std::vector<int64_t> own(static_cast<size_t>(cells));
  int64_t too_few = -1;
  const auto visit = [&](int64_t x, int64_t y_begin, int64_t features, const auto& counts) {
    CellSums sums[kMostFeatures];
    if (takes_sums(args.terms.estimator)) sum_cells(args.terms, counts, features, sums);
    for (int64_t f = 0; f < features; ++f) {
      const int64_t y = y_begin + f, pair = x * codes.y_features + y;
      if (args.symmetric && y <= x) continue;
      Marginals marginals{args.x_entropy[x], args.y_entropy[y], args.x_valid[x]};
      const bool whole = args.x_valid[x] == codes.samples && args.y_valid[y] == codes.samples;
      if (!whole || !takes_sums(args.terms.estimator)) counts.copy(f, own.data());
      if (!whole) {
        marginals = shared_marginals(args.terms, own.data(), codes.x_bins, codes.y_bins);
        if (marginals.samples < 2) {
          if (too_few < 0 || pair < too_few) too_few = pair;
          continue;
        }
      }
      const double joint = takes_sums(args.terms.estimator)
                               ? entropy_of_sums(args.terms, marginals.samples, sums[f])
                               : entropy_of_counts(args.terms, marginals.samples,
                                                   static_cast<double>(cells), own.data(), cells);
      args.result[pair] = information(args.information, marginals.x, marginals.y, joint);
      if (args.symmetric) {
        args.result[y * codes.y_features + x] =
            information(args.information, marginals.y, marginals.x, joint);
      }
    }
  };
  count_pairs(codes, args.symmetric, block, visit);
  if (args.symmetric) {  // H(X,X) = H(X), whatever the estimator
    for (int64_t x = std::max(block.x_begin, block.y_begin); x < std::min(block.x_end, block.y_end);
         ++x) {
      const double entropy = args.x_entropy[x];
      args.result[x * codes.y_features + x] =
          information(args.information, entropy, entropy, entropy);
    }
  }
  return too_few;
}

int64_t joint_information_cpu(const JointInformationArgs& args, int64_t pair_begin,
                              int64_t pair_end) {
  const int64_t cells = int64_t{args.x_bins} * args.y_bins;
  int64_t too_few = -1;
  for (int64_t pair = pair_begin; pair < pair_end; ++pair) {
    const int64_t* counts = args.counts + pair * cells;
    const int64_t samples = std::accumulate(counts, counts + cells, int64_t{0});
    if (samples < 2) {
      if (too_few < 0) too_few = pair;
      continue;
    }
    const EntropyTerms terms = entropy_terms(args.estimator, samples);
    const Marginals marginals = shared_marginals(terms, counts, args.x_bins, args.y_bins);
    const double joint =
        entropy_of_counts(terms, samples, static_cast<double>(cells), counts, cells);
    args.result[pair] = information(args.information, marginals.x, marginals.y, joint);
  }
  return too_few;
}

}  // namespace simmim

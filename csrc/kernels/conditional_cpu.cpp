#include <algorithm>
#include <vector>

#include "conditional.h"
#include "joint_carry_save.h"
#include "label_groups.h"

namespace simmim {
namespace {

// Over the samples that are valid in x and in y.
struct PairEntropies {
  int64_t samples;
  double xz, yz, z;
};

// Of a pair whose samples are all valid, or of x with itself.
PairEntropies known_entropies(const ConditionalInformationArgs& args, int64_t x, int64_t y) {
  return {args.codes.samples, args.xz_entropy[x], args.yz_entropy[y], args.z_entropy};
}

bool all_valid(const ConditionalInformationArgs& args, int64_t x, int64_t y) {
  return args.x_valid[x] == args.codes.samples && args.y_valid[y] == args.codes.samples;
}

// Goes by the samples of one pair: for few samples in each group, or few pairs.
class PairSamples {
 public:
  PairSamples(const ConditionalInformationArgs& args, int64_t x, int64_t y,
              std::vector<int64_t>& counters)
      : args_(args),
        x_(args.codes.x + x * args.codes.samples),
        y_(args.codes.y + y * args.codes.samples),
        counters_(counters) {}

  PairEntropies shared_entropies() const {
    int64_t samples = 0;
    for (int64_t i = 0; i < args_.codes.samples; ++i) samples += valid(i);
    if (samples < 2) return {samples, 0, 0, 0};
    const auto x_cell = [&](int64_t i) { return int64_t{x_[i]}; };
    const auto y_cell = [&](int64_t i) { return int64_t{y_[i]}; };
    const auto one_cell = [](int64_t) { return int64_t{0}; };
    return {samples, entropy(samples, args_.codes.x_bins, x_cell),
            entropy(samples, args_.codes.y_bins, y_cell), entropy(samples, 1, one_cell)};
  }

  double xyz_entropy(int64_t samples) const {
    const int64_t y_bins = args_.codes.y_bins;
    return entropy(samples, args_.codes.x_bins * y_bins,
                   [&](int64_t i) { return x_[i] * y_bins + y_[i]; });
  }

 private:
  bool valid(int64_t i) const {
    return (x_[i] < args_.codes.x_bins) & (y_[i] < args_.codes.y_bins);
  }

  template <typename Cell>
  double entropy(int64_t samples, int64_t cells, Cell&& cell) const {
    const double alphabet = static_cast<double>(cells) * args_.z_alphabet;
    return entropy_of_cells(args_.terms, samples, alphabet, [&](auto&& visit) {
      visit_groups(
          args_.groups, cells, counters_,
          [&](int64_t i) { return valid(i) ? cell(i) : int64_t{-1}; }, visit);
    });
  }

  const ConditionalInformationArgs& args_;
  const uint8_t* x_;
  const uint8_t* y_;
  std::vector<int64_t>& counters_;
};

// Goes by counts of one pair after another.
class PairCounts {
 public:
  explicit PairCounts(const ConditionalInformationArgs& args)
      : args_(args),
        xyz_(static_cast<size_t>(args.groups.count) * args.codes.x_bins * args.codes.y_bins),
        xz_(static_cast<size_t>(args.groups.count) * args.codes.x_bins),
        yz_(static_cast<size_t>(args.groups.count) * args.codes.y_bins),
        z_(static_cast<size_t>(args.groups.count)) {}

  void take(const JointCounts<uint32_t>& counts, int64_t feature) {
    counts.copy(feature, xyz_.data());
  }

  PairEntropies shared_entropies() {
    const int64_t x_bins = args_.codes.x_bins, y_bins = args_.codes.y_bins;
    std::fill(xz_.begin(), xz_.end(), 0);
    std::fill(yz_.begin(), yz_.end(), 0);
    std::fill(z_.begin(), z_.end(), 0);
    int64_t samples = 0;
    for (size_t cell = 0; cell < xyz_.size(); ++cell) {
      const int64_t run = static_cast<int64_t>(cell) / y_bins, group = run / x_bins;
      xz_[run] += xyz_[cell];
      yz_[group * y_bins + static_cast<int64_t>(cell) % y_bins] += xyz_[cell];
      z_[group] += xyz_[cell];
      samples += xyz_[cell];
    }
    if (samples < 2) return {samples, 0, 0, 0};
    return {samples, entropy(samples, xz_), entropy(samples, yz_), entropy(samples, z_)};
  }

  double xyz_entropy(int64_t samples) const { return entropy(samples, xyz_); }

 private:
  double entropy(int64_t samples, const std::vector<int64_t>& counts) const {
    const auto cells = static_cast<int64_t>(counts.size());
    const double alphabet = static_cast<double>(cells / args_.groups.count) * args_.z_alphabet;
    return entropy_of_counts(args_.terms, samples, alphabet, counts.data(), cells);
  }

  const ConditionalInformationArgs& args_;
  std::vector<int64_t> xyz_, xz_, yz_, z_;  // [groups, x_bins, y_bins] and their sums
};

void store(const ConditionalInformationArgs& args, int64_t x, int64_t y,
           const PairEntropies& entropies, double xyz) {
  // Exactly 0 where x or y is constant.
  double value = (entropies.xz - entropies.z) - (xyz - entropies.yz);
  if (args.terms.estimator == Estimator::plugin && value < 0) value = 0;
  const float result = static_cast<float>(value / args.nats_per_unit);
  args.result[x * args.codes.y_features + y] = result;
  if (args.symmetric) args.result[y * args.codes.y_features + x] = result;
}

// The first pair that shares fewer than two valid samples.
struct TooFew {
  int64_t first = -1;
  bool operator()(int64_t pair, const PairEntropies& entropies) {
    if (entropies.samples >= 2) return false;
    if (first < 0 || pair < first) first = pair;
    return true;
  }
};

void visit_pair(const ConditionalInformationArgs& args, int64_t x, int64_t y,
                std::vector<int64_t>& counters, TooFew& too_few) {
  const PairSamples pair(args, x, y, counters);
  const PairEntropies entropies =
      all_valid(args, x, y) ? known_entropies(args, x, y) : pair.shared_entropies();
  if (too_few(x * args.codes.y_features + y, entropies)) return;
  const bool same = args.symmetric && x == y;  // I(X;X|Z) = H(X|Z), whatever the estimator
  store(args, x, y, entropies, same ? entropies.xz : pair.xyz_entropy(entropies.samples));
}

}  // namespace

void grouped_entropy_cpu(const GroupedEntropyArgs& args, int64_t feature_begin,
                         int64_t feature_end) {
  std::vector<int64_t> counters;
  for (int64_t feature = feature_begin; feature < feature_end; ++feature) {
    const uint8_t* x = args.x + feature * args.samples;
    int64_t samples = 0;
    for (int64_t i = 0; i < args.samples; ++i) samples += x[i] < args.bins;
    args.entropy[feature] = 0;
    if (samples < 2) continue;
    args.entropy[feature] =
        entropy_of_cells(args.terms, samples, args.bins * args.z_alphabet, [&](auto&& visit) {
          visit_groups(
              args.groups, args.bins, counters,
              [&](int64_t i) { return x[i] < args.bins ? int64_t{x[i]} : int64_t{-1}; }, visit);
        });
  }
}

int64_t conditional_information_cpu(const ConditionalInformationArgs& args,
                                    const PairBlock& block) {
  std::vector<int64_t> counters;
  TooFew too_few;
  if (!carry_save_pays(args.codes, args.groups.count)) {
    for (int64_t x = block.x_begin; x < block.x_end; ++x) {
      const int64_t y_begin = args.symmetric ? std::max(block.y_begin, x) : block.y_begin;
      for (int64_t y = y_begin; y < block.y_end; ++y) visit_pair(args, x, y, counters, too_few);
    }
    return too_few.first;
  }
  if (args.symmetric) {
    const int64_t end = std::min(block.x_end, block.y_end);
    for (int64_t x = std::max(block.x_begin, block.y_begin); x < end; ++x) {
      visit_pair(args, x, x, counters, too_few);
    }
  }
  PairCounts pair(args);
  const bool sums_do = takes_sums(args.terms.estimator);
  count_pairs_by_carry_save(
      args.codes, args.groups, args.symmetric, block,
      [&](int64_t x, int64_t y_begin, int64_t features, const JointCounts<uint32_t>& counts) {
        CellSums sums[kMostFeatures];
        if (sums_do) sum_cells(args.terms, counts, features, sums);
        for (int64_t f = 0; f < features; ++f) {
          const int64_t y = y_begin + f;
          if (args.symmetric && y <= x) continue;
          const bool whole = all_valid(args, x, y);
          if (!whole || !sums_do) pair.take(counts, f);
          const PairEntropies entropies =
              whole ? known_entropies(args, x, y) : pair.shared_entropies();
          if (too_few(x * args.codes.y_features + y, entropies)) continue;
          store(args, x, y, entropies,
                sums_do ? entropy_of_sums(args.terms, entropies.samples, sums[f])
                        : pair.xyz_entropy(entropies.samples));
        }
      });
  return too_few.first;
}

}  // namespace simmim

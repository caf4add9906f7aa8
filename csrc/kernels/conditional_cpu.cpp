#include <algorithm>
#include <vector>

#include "conditional.h"

namespace simmim {
namespace {

// The counts of one group of samples after another, in counters that are all 0 in between.
// cell_of gives a sample's cell in [0, cells), or -1 for a sample that does not count.
template <typename CellOf, typename Visit>
void visit_groups(const int64_t* group_begin, int64_t groups, int64_t cells,
                  std::vector<int64_t>& counters, CellOf&& cell_of, Visit&& visit) {
  counters.resize(static_cast<size_t>(cells));
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group_begin[group], end = group_begin[group + 1];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cell = cell_of(i);
      if (cell >= 0) ++counters[cell];
    }
    if (end - begin < cells) {  // fewer samples than cells: go by the samples instead
      for (int64_t i = begin; i < end; ++i) {
        const int64_t cell = cell_of(i);
        if (cell < 0 || counters[cell] == 0) continue;
        visit(counters[cell]);
        counters[cell] = 0;
      }
    } else {
      for (int64_t cell = 0; cell < cells; ++cell) visit(counters[cell]);
      std::fill(counters.begin(), counters.end(), 0);
    }
  }
}

// Entropies of one pair joined with z.
class Pair {
 public:
  Pair(const ConditionalInformationArgs& args, int64_t x, int64_t y, std::vector<int64_t>& counters)
      : args_(args),
        x_(args.codes.x + x * args.codes.samples),
        y_(args.codes.y + y * args.codes.samples),
        counters_(counters) {}

  int64_t samples() const {
    int64_t samples = 0;
    for (int64_t i = 0; i < args_.codes.samples; ++i) samples += valid(i);
    return samples;
  }

  double joint_entropy(int64_t samples) const {
    const int64_t y_bins = args_.codes.y_bins;
    return entropy(samples, args_.codes.x_bins * y_bins,
                   [&](int64_t i) { return x_[i] * y_bins + y_[i]; });
  }
  double x_entropy(int64_t samples) const {
    return entropy(samples, args_.codes.x_bins, [&](int64_t i) { return int64_t{x_[i]}; });
  }
  double y_entropy(int64_t samples) const {
    return entropy(samples, args_.codes.y_bins, [&](int64_t i) { return int64_t{y_[i]}; });
  }
  double z_entropy(int64_t samples) const {
    return entropy(samples, 1, [](int64_t) { return int64_t{0}; });
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
          args_.group_begin, args_.groups, cells, counters_,
          [&](int64_t i) { return valid(i) ? cell(i) : int64_t{-1}; }, visit);
    });
  }

  const ConditionalInformationArgs& args_;
  const uint8_t* x_;
  const uint8_t* y_;
  std::vector<int64_t>& counters_;
};

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
              args.group_begin, args.groups, args.bins, counters,
              [&](int64_t i) { return x[i] < args.bins ? int64_t{x[i]} : int64_t{-1}; }, visit);
        });
  }
}

int64_t conditional_information_cpu(const ConditionalInformationArgs& args,
                                    const PairBlock& block) {
  const CodePair& codes = args.codes;
  std::vector<int64_t> counters;
  int64_t too_few = -1;
  for (int64_t x = block.x_begin; x < block.x_end; ++x) {
    for (int64_t y = block.y_begin; y < block.y_end; ++y) {
      if (args.symmetric && y < x) continue;
      const int64_t index = x * codes.y_features + y;
      const bool same = args.symmetric && x == y;
      const Pair pair(args, x, y, counters);
      int64_t samples = args.x_valid[x];
      double xz = args.xz_entropy[x], yz = args.yz_entropy[y], z = args.z_entropy;
      if (samples < codes.samples || args.y_valid[y] < codes.samples) {
        samples = pair.samples();
        if (samples < 2) {
          if (too_few < 0) too_few = index;
          continue;
        }
        xz = pair.x_entropy(samples);
        yz = pair.y_entropy(samples);
        z = pair.z_entropy(samples);
      }
      const double joint = same ? xz : pair.joint_entropy(samples);  // I(X;X|Z) = H(X|Z)
      double value = (xz - z) - (joint - yz);  // exactly 0 where x or y is constant
      if (args.terms.estimator == Estimator::plugin && value < 0) value = 0;
      const float result = static_cast<float>(value / args.nats_per_unit);
      args.result[index] = result;
      if (args.symmetric) args.result[y * codes.y_features + x] = result;
    }
  }
  return too_few;
}

}  // namespace simmim

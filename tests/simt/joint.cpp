// Joint counts and pairwise information, emulated, against loops over the samples.
#include "../../csrc/kernels/joint.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/kernels/joint_planes.cuh"
#include "check.h"

namespace {

using simmim::Estimator;
using simmim::Information;
using simmim::Normalization;
using simmim::Quantity;

constexpr int64_t kNone = INT64_MAX;

// Codes that depend on one another, with a share of missing samples (in percent).
std::vector<uint8_t> draw(int64_t features, int64_t samples, int bins, int missing, unsigned seed) {
  std::mt19937 common(7), own(seed);
  std::vector<unsigned> base(samples);
  for (auto& b : base) b = common();
  std::vector<uint8_t> codes(features * samples);
  for (int64_t i = 0; i < features * samples; ++i) {
    const unsigned value = own() % 2 ? base[i % samples] : own();
    codes[i] = static_cast<uint8_t>(own() % 100 < unsigned(missing) ? 255 : value % bins);
  }
  return codes;
}

std::vector<int64_t> count(const uint8_t* x, const uint8_t* y, int64_t samples, int x_bins,
                           int y_bins) {
  std::vector<int64_t> counts(int64_t{x_bins} * y_bins);
  for (int64_t i = 0; i < samples; ++i) {
    if (x[i] < x_bins && y[i] < y_bins) ++counts[x[i] * y_bins + y[i]];
  }
  return counts;
}

struct Entropies {
  int64_t samples = 0;
  double x = NAN, y = NAN, joint = NAN;
};

Entropies entropies_of(const std::vector<int64_t>& counts, int x_bins, int y_bins,
                       const simmim::EntropyTerms& terms) {
  Entropies result;
  std::vector<int64_t> rows(x_bins), columns(y_bins);
  for (int a = 0; a < x_bins; ++a) {
    for (int b = 0; b < y_bins; ++b) {
      rows[a] += counts[a * y_bins + b];
      columns[b] += counts[a * y_bins + b];
    }
  }
  for (const int64_t row : rows) result.samples += row;
  if (result.samples < 2) return result;
  const auto entropy = [&](const std::vector<int64_t>& cells) {
    const double alphabet = static_cast<double>(cells.size());
    return simmim::entropy_of_counts(terms, result.samples, alphabet, cells.data(),
                                     static_cast<int64_t>(cells.size()));
  };
  result.x = entropy(rows);
  result.y = entropy(columns);
  result.joint = entropy(counts);
  return result;
}

struct Problem {
  int64_t x_features, y_features, samples;
  int x_bins, y_bins, missing;
  bool symmetric;
};

// `table_size`: of the terms that are tabulated; where it is over the samples, sums of them
// suffice.
void check_pairs(const Problem& p, Estimator estimator, const Information& info,
                 int64_t table_size = 50) {
  std::vector<uint8_t> x = draw(p.x_features, p.samples, p.x_bins, p.missing, 1);
  std::vector<uint8_t> y = p.symmetric ? x : draw(p.y_features, p.samples, p.y_bins, p.missing, 2);
  simmim::EntropyTerms terms = simmim::entropy_terms(estimator, p.samples);
  std::vector<int64_t> table(std::min(p.samples + 1, table_size));
  for (size_t i = 0; i < table.size(); ++i) table[i] = compute_term(terms, int64_t(i));
  const auto marginal = [&](const std::vector<uint8_t>& codes, int64_t features, int bins,
                            std::vector<int64_t>& valid, std::vector<double>& entropy) {
    for (int64_t f = 0; f < features; ++f) {
      const uint8_t* own = codes.data() + f * p.samples;
      const Entropies e = entropies_of(count(own, own, p.samples, bins, bins), bins, bins, terms);
      valid.push_back(e.samples);
      entropy.push_back(e.x);
    }
  };
  std::vector<int64_t> x_valid, y_valid;
  std::vector<double> x_entropy, y_entropy;
  marginal(x, p.x_features, p.x_bins, x_valid, x_entropy);
  marginal(y, p.y_features, p.y_bins, y_valid, y_entropy);

  std::vector<float> result(p.x_features * p.y_features, -9);
  const simmim::CodePair codes{
      x.data(), p.symmetric ? x.data() : y.data(), p.x_features, p.y_features, p.samples, p.x_bins,
      p.y_bins};
  simmim::EntropyTerms device_terms = terms;
  device_terms.table = table.data();
  device_terms.table_size = static_cast<int64_t>(table.size());
  const simmim::PairwiseInformationArgs args{
      codes,        p.symmetric, x_valid.data(), y_valid.data(), x_entropy.data(), y_entropy.data(),
      device_terms, info,        result.data()};
  std::vector<uint32_t> scratch(simmim::pairwise_scratch_words(args), 0xdeadbeef);
  int64_t fault = kNone, expected_fault = kNone;
  bool good = simmim::pairwise_information_cuda(args, scratch.data(), &fault, nullptr) == 0;
  for (int64_t i = 0; i < p.x_features; ++i) {
    for (int64_t j = 0; j < p.y_features; ++j) {
      const int64_t index = i * p.y_features + j;
      const auto counts =
          count(x.data() + i * p.samples, y.data() + j * p.samples, p.samples, p.x_bins, p.y_bins);
      Entropies e = entropies_of(counts, p.x_bins, p.y_bins, terms);
      if (p.symmetric && i == j) e.joint = e.y = e.x = x_entropy[i];
      if (e.samples < 2 && !(p.symmetric && j < i)) {
        expected_fault = std::min(expected_fault, index);
      }
      const float wanted = e.samples < 2 ? NAN : simmim::information(info, e.x, e.y, e.joint);
      good &= simt::close(result[index], wanted, 1e-6);
      if (p.symmetric && info.quantity != Quantity::conditional_entropy) {
        good &= simt::close(result[index], result[j * p.y_features + i], 0);
      }
    }
  }
  simt::check(good && fault == expected_fault,
              "pairwise: %ldx%ld samples=%ld bins=%d,%d missing=%d symmetric=%d estimator=%d "
              "table=%ld",
              p.x_features, p.y_features, p.samples, p.x_bins, p.y_bins, p.missing, p.symmetric,
              int(estimator), table_size);
}

void check_counts(const Problem& p) {
  const std::vector<uint8_t> x = draw(p.x_features, p.samples, p.x_bins, p.missing, 1);
  const std::vector<uint8_t> y = draw(p.y_features, p.samples, p.y_bins, p.missing, 2);
  const int64_t cells = int64_t{p.x_bins} * p.y_bins, pairs = p.x_features * p.y_features;
  std::vector<int64_t> counts(pairs * cells, -9), expected;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto own =
        count(x.data() + pair / p.y_features * p.samples,
              y.data() + pair % p.y_features * p.samples, p.samples, p.x_bins, p.y_bins);
    expected.insert(expected.end(), own.begin(), own.end());
  }
  const simmim::CodePair codes{x.data(),  y.data(), p.x_features, p.y_features,
                               p.samples, p.x_bins, p.y_bins};
  const int error = simmim::joint_histogram_cuda({codes, counts.data()}, nullptr);
  simt::check(error == 0 && counts == expected, "joint_histogram: samples=%ld bins=%d,%d",
              p.samples, p.x_bins, p.y_bins);

  for (int estimator = 0; estimator < 5; ++estimator) {
    std::vector<float> result(pairs, -9);
    const Information info{Quantity::mutual_information, Normalization::none, estimator == 0, 1};
    int64_t fault = kNone;
    bool good = simmim::joint_information_cuda({expected.data(), pairs, p.x_bins, p.y_bins,
                                                Estimator(estimator), info, result.data()},
                                               &fault, nullptr) == 0;
    int64_t expected_fault = kNone;
    for (int64_t pair = pairs; pair-- > 0;) {
      const std::vector<int64_t> own(expected.begin() + pair * cells,
                                     expected.begin() + (pair + 1) * cells);
      int64_t samples = 0;
      for (const int64_t c : own) samples += c;
      const Entropies e = entropies_of(own, p.x_bins, p.y_bins,
                                       simmim::entropy_terms(Estimator(estimator), samples));
      if (samples < 2) expected_fault = pair;
      good &= simt::close(result[pair],
                          samples < 2 ? NAN : simmim::information(info, e.x, e.y, e.joint), 1e-6);
    }
    simt::check(good && fault == expected_fault, "joint_information: bins=%d,%d estimator=%d",
                p.x_bins, p.y_bins, estimator);
  }
}

// Counts that are none, or too many, in the second of three pairs.
void check_wrong_counts(int32_t bins, int64_t value) {
  const int64_t cells = int64_t{bins} * bins;
  std::vector<int64_t> counts(3 * cells, 1);
  std::fill_n(counts.begin() + cells, cells, value);
  std::vector<float> result(3, -9);
  const Information info{Quantity::joint_entropy, Normalization::none, true, 1};
  int64_t fault = kNone;
  const int error = simmim::joint_information_cuda(
      {counts.data(), 3, bins, bins, Estimator::plugin, info, result.data()}, &fault, nullptr);
  const bool good = error == 0 && fault == 1 && std::isnan(result[1]) && result[2] > 0;
  simt::check(good, "wrong counts: bins=%d value=%ld", bins, value);
}

// Blocks take every tile that is wanted once, and no other.
void check_order(int64_t rows, int64_t columns, bool symmetric) {
  const simmim::TileOrder order{rows, columns, symmetric};
  std::vector<int> taken(rows * columns);
  bool good = true;
  for (int64_t index = 0; index < order.count(); ++index) {
    int64_t row, column;
    if (!order.find(index, &row, &column)) continue;
    const bool within = row >= 0 && row < rows && column >= 0 && column < columns;
    good &= within && ++taken[row * columns + column] == 1;
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      good &= taken[row * columns + column] == !(symmetric && column < row);
    }
  }
  simt::check(good, "tile order: %ldx%ld symmetric=%d", rows, columns, symmetric);
}

}  // namespace

int main() {
  for (const int64_t tiles : {1, 15, 16, 17, 31, 32, 33, 48, 100}) {
    check_order(tiles, tiles, true);
    check_order(tiles, 3, false);
    check_order(3, tiles, false);
  }

  const Information mutual{Quantity::mutual_information, Normalization::none, true, 1};
  // In planes on tensor cores: ragged features, samples and bins, gaps, and a second tile.
  for (const Problem& p : {Problem{3, 5, 1025, 8, 7, 0, false},
                           {9, 9, 513, 5, 5, 20, true},
                           {5, 3, 700, 16, 12, 10, false},
                           {3, 3, 64, 32, 32, 0, true},
                           {2, 3, 1, 4, 4, 0, false},
                           {2, 3, 0, 4, 4, 0, false},
                           {3, 3, 0, 20, 20, 0, true},
                           {17, 10, 130, 9, 3, 60, false},
                           {17, 17, 40, 16, 16, 5, true}}) {
    check_pairs(p, Estimator::plugin, mutual);
  }
  // The same without gaps from sums alone, some of cells beyond the terms at hand.
  constexpr int64_t kAll = int64_t{1} << 16;
  for (const Problem& p : {Problem{19, 17, 1500, 7, 8, 0, false},
                           {9, 9, 2049, 16, 16, 0, true},
                           {5, 9, 9000, 2, 2, 0, false},
                           {6, 5, 1024, 32, 17, 0, false},
                           {17, 17, 300, 8, 8, 3, true},
                           {13, 13, 20, 18, 18, 0, true}}) {
    check_pairs(p, Estimator::plugin, mutual, kAll);
  }
  const Information conditional{Quantity::conditional_entropy, Normalization::none, false, 2};
  const Information normal{Quantity::mutual_information, Normalization::geometric, false, 1};
  for (int estimator = 0; estimator < 5; ++estimator) {
    check_pairs({2, 3, 150, 8, 6, 20, false}, Estimator(estimator), conditional);
    check_pairs({2, 2, 150, 20, 20, 20, true}, Estimator(estimator), normal);
    check_pairs({3, 9, 150, 8, 6, 0, false}, Estimator(estimator), conditional, kAll);
    check_pairs({5, 5, 150, 20, 20, 0, true}, Estimator(estimator), normal, kAll);
    check_pairs({2, 2, 97, 40, 33, 20, false}, Estimator(estimator), conditional);  // by counters
  }
  // By counters in shared memory, up to more cells than fit at once.
  for (const Problem& p : {Problem{2, 3, 300, 33, 40, 0, false},
                           {3, 3, 61, 64, 64, 30, true},
                           {1, 2, 203, 256, 256, 0, false},
                           {1, 2, 0, 40, 40, 0, false},
                           {2, 2, 204, 255, 255, 20, true}}) {
    check_pairs(p, Estimator::plugin, mutual);
    if (!p.symmetric) check_pairs(p, Estimator::chao_shen, mutual);
  }
  simt::capability_major = 10;  // no products of bits: by counters too
  check_pairs({3, 2, 150, 8, 6, 20, false}, Estimator::plugin, mutual);
  simt::capability_major = 9;
  for (const Problem& p : {Problem{2, 3, 301, 7, 16, 0, false},
                           {2, 1, 1, 5, 2, 0, false},
                           {1, 2, 64, 255, 256, 20, false}}) {
    check_counts(p);
  }
  for (const int32_t bins : {2, 30}) {
    // Of the first two 4 wrap to 0.
    for (const int64_t value : {INT64_MAX / 2 + 1, INT64_MIN / 2, INT64_MAX, int64_t{-1}}) {
      check_wrong_counts(bins, value);
    }
  }
  return simt::finish("joint");
}

// Entropies of counts, emulated, against the formulas run by one thread.
#include "../../csrc/kernels/entropy.h"

#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/kernels/binning.h"
#include "check.h"

namespace {

using simmim::Estimator;

constexpr int64_t kNone = INT64_MAX;

void check_rows(int64_t features, int64_t bins, Estimator estimator) {
  std::mt19937 random(static_cast<unsigned>(features * 31 + bins));
  std::vector<int64_t> counts(features * bins);
  for (auto& count : counts) count = random() % 4 == 0 ? random() % 1000 : random() % 3;
  const bool thin = features > 2 && bins > 1;  // one row of a single sample
  if (thin) std::fill_n(counts.begin() + 2 * bins, bins, 0);
  if (thin) counts[2 * bins + 1] = 1;
  for (int64_t f = 0; f < features; ++f) {
    if (!(thin && f == 2)) counts[f * bins] += 2;
  }

  std::vector<float> entropy(features, -9), expected(features);
  std::vector<int64_t> valid(features, -9);
  std::vector<double> marginal(features, -9);
  int64_t fault = kNone, marginal_fault = kNone;
  const simmim::EntropyTerms terms = simmim::entropy_terms(estimator, 1 << 20);
  const int error =
      simmim::entropy_cuda({counts.data(), features, bins, estimator, 2.0, entropy.data()}, &fault,
                           nullptr) +
      simmim::marginals_cuda({counts.data(), features, bins, terms, valid.data(), marginal.data()},
                             &marginal_fault, nullptr);
  bool good = error == 0 && fault == (thin ? 2 : kNone) && marginal_fault == fault;
  for (int64_t f = 0; f < features; ++f) {
    const int64_t* row = counts.data() + f * bins;
    int64_t samples = 0;
    for (int64_t i = 0; i < bins; ++i) samples += row[i];
    good &= valid[f] == samples;
    if (samples < 2) {
      good &= std::isnan(entropy[f]) && std::isnan(marginal[f]);
      continue;
    }
    const double bins_ = static_cast<double>(bins);
    const double own = simmim::entropy_of_counts(simmim::entropy_terms(estimator, samples), samples,
                                                 bins_, row, bins);
    const double shared = simmim::entropy_of_counts(terms, samples, bins_, row, bins);
    good &= simt::close(entropy[f], own / 2, 1e-6) && simt::close(marginal[f], shared, 1e-12);
  }
  simt::check(good, "entropy: features=%ld bins=%ld estimator=%d", features, bins, int(estimator));
}

// Counts that are none, or too many, in a row that several lanes read, or lanes' sums together.
void check_wrong_counts(int64_t bins, int64_t value, int64_t every) {
  std::vector<int64_t> counts(3 * bins, 1);
  for (int64_t i = 0; i < bins; i += every) counts[bins + i] = value;
  std::vector<float> entropy(3, -9);
  int64_t fault = kNone;
  const int error = simmim::entropy_cuda(
      {counts.data(), 3, bins, Estimator::plugin, 1.0, entropy.data()}, &fault, nullptr);
  const bool good = error == 0 && fault == 1 && std::isnan(entropy[1]) && entropy[2] > 0;
  simt::check(good, "wrong counts: bins=%ld value=%ld every=%ld", bins, value, every);
}

void check_table(Estimator estimator) {
  const simmim::EntropyTerms terms = simmim::entropy_terms(estimator, 1000);
  std::vector<int64_t> table(300, -9);
  bool good = simmim::tabulate_cuda(terms, table.data(), 300, nullptr) == 0;
  for (int64_t i = 0; i < 300; ++i) good &= table[i] == simmim::compute_term(terms, i);
  simt::check(good, "tabulate: estimator=%d", int(estimator));
}

void check_codes(int64_t count, int32_t bins, int64_t bad) {
  std::vector<uint8_t> codes(count);
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(i % bins);
  if (count > 1) codes[1] = simmim::kInvalidCode;
  for (int64_t i = std::max<int64_t>(bad, 0); bad >= 0 && i < count; ++i) codes[i] = 200;
  int64_t fault = kNone;
  const int error = simmim::check_codes_cuda(codes.data(), count, bins, &fault, nullptr);
  simt::check(error == 0 && fault == (bad < 0 ? kNone : bad), "check_codes: count=%ld", count);
}

}  // namespace

int main() {
  for (int estimator = 0; estimator < 5; ++estimator) {
    for (const auto& [features, bins] :
         {std::pair<int64_t, int64_t>{1, 2}, {9, 33}, {3, 256}, {17, 1}}) {
      check_rows(features, bins, Estimator(estimator));
    }
    check_table(Estimator(estimator));
  }
  for (const int64_t bins : {2, 40, 256}) {
    for (const int64_t every : {1, 32}) {
      if (bins <= every) continue;                         // a count alone is none too many
      check_wrong_counts(bins, INT64_MAX / 2 + 1, every);  // 2 of them are 2^63, and 4 wrap to 0
      check_wrong_counts(bins, INT64_MAX, every);
      check_wrong_counts(bins, -1, every);
      check_wrong_counts(bins, INT64_MIN, every);
    }
  }
  for (const int64_t count : {0, 1, 255, 70000}) {
    check_codes(count, 16, -1);
    if (count > 2) check_codes(count, 16, count / 2);
  }
  check_codes(600, 200, 599);
  return simt::finish("entropy");
}

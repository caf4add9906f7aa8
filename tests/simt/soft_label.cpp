// Information about soft labels, emulated, against loops over the samples.
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/kernels/label.h"
#include "check.h"

namespace {

using simmim::Information;
using simmim::Normalization;
using simmim::Quantity;

enum class Labels {
  random,   // of any confidence
  certain,  // 0 and 1
  equal,    // all classes alike, in all samples
  tiny,     // all but one near 0
};

// [samples, classes] whose rows sum to 1.
std::vector<double> draw_labels(Labels kind, int64_t samples, int64_t classes) {
  std::mt19937 random(6);
  std::normal_distribution<double> normal;
  std::vector<double> p(samples * classes);
  for (int64_t i = 0; i < samples; ++i) {
    double* row = p.data() + i * classes;
    const int64_t chosen = random() % classes;
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      row[c] = kind == Labels::random    ? std::exp(3 * normal(random))
               : kind == Labels::certain ? double(c == chosen)
               : kind == Labels::equal   ? 1
                                         : (c == chosen ? 1 : 1e-9 * (1 + random() % 99));
      sum += row[c];
    }
    for (int64_t c = 0; c < classes; ++c) row[c] /= sum;
  }
  return p;
}

struct Case {
  int64_t features, samples;
  int bins;
  int64_t classes;
  int missing;  // percent
  Labels labels = Labels::random;
};

void check_soft(const Case& given) {
  const auto [features, samples, bins, classes, missing, labels] = given;
  std::mt19937 random(4);
  std::vector<uint8_t> x(features * samples);
  for (auto& code : x) {
    code = static_cast<uint8_t>(random() % 100 < unsigned(missing) ? 255 : random() % bins);
  }
  const std::vector<double> p = draw_labels(labels, samples, classes);
  const simmim::EntropyTerms terms = simmim::entropy_terms(simmim::Estimator::plugin, samples);
  const Information info{Quantity::mutual_information, Normalization::none, true, 1};
  std::vector<float> result(features, -9), expected;
  std::vector<int64_t> valid;
  std::vector<double> x_entropy;
  for (int64_t f = 0; f < features; ++f) {
    std::vector<int64_t> counts(bins);
    std::vector<double> cells(bins * classes);
    int64_t n = 0;
    for (int64_t i = 0; i < samples; ++i) {
      const int code = x[f * samples + i];
      if (code >= bins) continue;
      ++n, ++counts[code];
      for (int64_t c = 0; c < classes; ++c) cells[code * classes + c] += p[i * classes + c];
    }
    double joint = 0, label = 0;
    for (int64_t c = 0; c < classes; ++c) {
      double sum = 0;
      for (int b = 0; b < bins; ++b) {
        const double w = cells[b * classes + c] / double(n);
        sum += w;
        if (w > 0) joint -= w * std::log(w);
      }
      if (sum > 0) label -= sum * std::log(sum);
    }
    valid.push_back(n);
    x_entropy.push_back(n < 2 ? NAN
                              : simmim::entropy_of_counts(terms, n, bins, counts.data(), bins));
    expected.push_back(n < 2 ? NAN : simmim::information(info, x_entropy.back(), label, joint));
  }
  const simmim::SoftLabelInformationArgs args{x.data(), p.data(), features, samples,      classes,
                                              bins,     terms,    info,     result.data()};
  const int64_t bytes = simmim::soft_label_scratch(args);
  std::vector<uint64_t> scratch((bytes + 7) / 8, 0xa5a5a5a5a5a5a5a5);
  bool good = simmim::soft_label_information_cuda(args, valid.data(), x_entropy.data(),
                                                  scratch.data(), nullptr) == 0;
  for (int64_t f = 0; f < features; ++f) good &= simt::close(result[f], expected[f], 1e-6);
  simt::check(good, "soft_label: samples=%ld bins=%d classes=%ld missing=%d labels=%d", samples,
              bins, classes, missing, int(labels));
}

}  // namespace

int main() {
  check_soft({5, 203, 8, 10, 0});
  check_soft({3, 90, 9, 37, 30});
  check_soft({2, 64, 256, 33, 0});
  check_soft({1, 300, 254, 2, 20});
  check_soft({1, 2, 2, 1, 0});
  check_soft({2, 4, 3, 2, 95});    // features without samples
  check_soft({9, 130, 16, 3, 5});  // more groups than a warp takes
  check_soft({33, 40, 16, 1, 5});  // than a block takes
  check_soft({1, 9000, 2, 2, 5});  // more chunks than one block sums up
  check_soft({2, 129, 3, 1000, 0});
  check_soft({1, 3, 3, 300, 0});  // far fewer samples than cells
  check_soft({1, 600, 2, 290, 0, Labels::equal});
  check_soft({1, 600, 2, 300, 0, Labels::tiny});
  check_soft({2, 500, 7, 9, 10, Labels::certain});
  return simt::finish("soft_label");
}

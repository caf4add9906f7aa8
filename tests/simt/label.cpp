// Information about labels, emulated, against loops over the samples.
#include "../../csrc/kernels/label.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"

namespace {

using simmim::Estimator;
using simmim::Information;
using simmim::Normalization;
using simmim::Quantity;

std::vector<uint8_t> draw(int64_t count, int bins, int missing, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(count);
  for (auto& code : codes) {
    code = static_cast<uint8_t>(random() % 100 < unsigned(missing) ? 255 : random() % bins);
  }
  return codes;
}

double entropy(const simmim::EntropyTerms& terms, int64_t samples, double alphabet,
               const std::vector<int64_t>& cells) {
  return simmim::entropy_of_counts(terms, samples, alphabet, cells.data(),
                                   static_cast<int64_t>(cells.size()));
}

void check_labels(int64_t features, int64_t samples, int bins, int64_t classes,
                  int64_t most_classes, int missing, Estimator estimator) {
  const std::vector<uint8_t> x = draw(features * samples, bins, missing, 3);
  std::mt19937 random(5);
  std::vector<int32_t> labels(samples);
  for (int64_t i = 0; i < samples; ++i) {
    labels[i] = static_cast<int32_t>((random() % 2 ? x[i] : random()) % classes);
  }
  simmim::EntropyTerms terms = simmim::entropy_terms(estimator, samples);
  const Information info{Quantity::mutual_information, Normalization::none,
                         estimator == Estimator::plugin, 1};
  const double alphabet = static_cast<double>(classes);
  std::vector<float> result(features, -9);
  const simmim::LabelTableArgs args{x.data(),     labels.data(), &classes,     &alphabet,
                                    most_classes, features,      samples,      bins,
                                    terms,        info,          result.data()};
  bool good = simmim::label_information_cuda(args, nullptr) == 0;
  for (int64_t f = 0; f < features; ++f) {
    std::vector<int64_t> rows(classes), columns(bins), cells(classes * bins);
    int64_t valid = 0;
    for (int64_t i = 0; i < samples; ++i) {
      const int code = x[f * samples + i];
      if (code >= bins) continue;
      ++valid, ++rows[labels[i]], ++columns[code], ++cells[labels[i] * bins + code];
    }
    const float wanted = valid < 2
                             ? NAN
                             : simmim::information(info, entropy(terms, valid, bins, columns),
                                                   entropy(terms, valid, alphabet, rows),
                                                   entropy(terms, valid, alphabet * bins, cells));
    good &= simt::close(result[f], wanted, 1e-6);
  }
  simt::check(good, "label: samples=%ld bins=%d classes=%ld estimator=%d", samples, bins, classes,
              int(estimator));
}

}  // namespace

int main() {
  for (int estimator = 0; estimator < 5; ++estimator) {
    check_labels(3, 401, 9, 7, 7, 20, Estimator(estimator));
    check_labels(2, 400, 9, 7, 30, 20, Estimator(estimator));  // read by vectors, in fewer copies
  }
  check_labels(1, 2, 2, 1, 1, 0, Estimator::plugin);
  check_labels(2, 4, 3, 2, 65536, 95, Estimator::plugin);       // features without samples
  check_labels(2, 300, 256, 400, 65536, 0, Estimator::plugin);  // more cells than fit at once
  check_labels(1, 130, 255, 300, 300, 10, Estimator::chao_shen);
  return simt::finish("label");
}

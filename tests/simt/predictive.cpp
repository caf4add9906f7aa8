// Predictive information, emulated, against its definition.
#include "../../csrc/kernels/predictive.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace {

constexpr int64_t kNone = INT64_MAX;

template <typename Scalar>
void check(int64_t samples, int64_t classes, int64_t bad, Scalar value) {
  std::mt19937 random(8);
  std::vector<Scalar> logits(samples * classes);
  for (auto& l : logits) l = std::normal_distribution<Scalar>(0, 3)(random);
  if (classes > 1) logits[1] = -std::numeric_limits<Scalar>::infinity();  // ruled out
  if (bad >= 0) logits[bad * classes + classes / 2] = value;
  std::vector<double> mean(classes);
  double conditional = 0, marginal = 0;
  for (int64_t i = 0; i < samples; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(double(logits[i * classes + c]));
    for (int64_t c = 0; c < classes; ++c) {
      const double p = std::exp(double(logits[i * classes + c])) / sum;
      mean[c] += p / double(samples);
      if (p > 0) conditional -= p * std::log(p) / double(samples);
    }
  }
  for (const double p : mean) marginal -= p > 0 ? p * std::log(p) : 0;
  const double wanted = bad < 0 ? (marginal - conditional) / 2 : NAN;

  std::vector<double> scratch(simmim::predictive_scratch_cuda(samples, classes), -9);
  float result = -9;
  int64_t fault = kNone;
  const int error = simmim::predictive_information_cuda<Scalar>(
      {logits.data(), samples, classes}, 2.0, scratch.data(), &result, &fault, nullptr);
  simt::check(error == 0 && fault == (bad < 0 ? kNone : bad) && simt::close(result, wanted, 1e-6),
              "predictive: samples=%ld classes=%ld bad=%ld", samples, classes, bad);
}

}  // namespace

int main() {
  for (const auto& [samples, classes] : {std::pair<int64_t, int64_t>{2, 1}, {9, 10}, {5, 31}}) {
    check<float>(samples, classes, -1, 0);
    check<double>(samples, classes, -1, 0);
    check<float>(samples, classes, samples - 1, NAN);
    check<double>(samples, classes, samples / 2, INFINITY);
  }
  // The most classes for teams of a thread, and of a warp; beyond, the block is one.
  check<float>(300, 30, -1, 0);
  check<float>(3, 1022, -1, 0);
  check<double>(2, 1023, 1, NAN);
  check<float>(2, 1023, -1, 0);
  check<float>(131'100, 2, -1, 0);  // more samples than teams
  return simt::finish("predictive");
}

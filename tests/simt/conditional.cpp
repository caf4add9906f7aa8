// Conditional information, emulated, against loops over the samples.
#include "../../csrc/kernels/conditional.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "check.h"

namespace {

using simmim::Estimator;

constexpr int64_t kNone = INT64_MAX;

struct Problem {
  int64_t x_features, y_features, samples;
  int x_bins, y_bins, z_values, missing;
  bool symmetric;
};

struct Data {
  std::vector<uint8_t> x, y;
  std::vector<int32_t> z;
};

Data draw(const Problem& p) {
  std::mt19937 random(11);
  Data data;
  const auto codes = [&](int64_t count, int bins) {
    std::vector<uint8_t> result(count);
    for (auto& code : result) {
      code = static_cast<uint8_t>(random() % 100 < unsigned(p.missing) ? 255 : random() % bins);
    }
    return result;
  };
  data.x = codes(p.x_features * p.samples, p.x_bins);
  data.y = p.symmetric ? data.x : codes(p.y_features * p.samples, p.y_bins);
  data.z.resize(p.samples);
  for (auto& z : data.z) z = random() % 100 < unsigned(p.missing) ? -1 : random() % p.z_values;
  return data;
}

struct Entropy {
  int64_t samples = 0;
  double nats = NAN;
};

// Over the samples for which key gives cell and true.
template <typename Key>
Entropy entropy_by(int64_t samples, const simmim::EntropyTerms& terms, double alphabet, Key key) {
  std::map<std::tuple<int, int, int>, int64_t> cells;
  Entropy result;
  for (int64_t i = 0; i < samples; ++i) {
    std::tuple<int, int, int> cell;
    if (!key(i, cell)) continue;
    ++cells[cell];
    ++result.samples;
  }
  if (result.samples < 2) return result;
  result.nats = simmim::entropy_of_cells(terms, result.samples, alphabet, [&](auto&& visit) {
    for (const auto& [cell, count] : cells) visit(count);
  });
  return result;
}

void check(const Problem& p, Estimator estimator) {
  const Data data = draw(p);
  const simmim::EntropyTerms terms = simmim::entropy_terms(estimator, p.samples);
  const int64_t values = p.z_values;
  const double alphabet = p.z_values + 1;
  const simmim::Given given{data.z.data(), &values, &alphabet, std::max<int64_t>(values, 5000)};

  int64_t z_fault = kNone, fault = kNone;
  const auto grouped = [&](const std::vector<uint8_t>* x, int64_t features, int bins) {
    std::pair<std::vector<int64_t>, std::vector<double>> result;
    result.first.resize(features, -9);
    result.second.resize(features, -9);
    const int error = simmim::grouped_entropy_cuda(
        {given, x == nullptr ? nullptr : x->data(), features, p.samples, bins, terms,
         result.first.data(), result.second.data()},
        &z_fault, nullptr);
    bool good = error == 0;
    for (int64_t f = 0; f < features; ++f) {
      const Entropy e = entropy_by(p.samples, terms, bins * alphabet, [&](int64_t i, auto& cell) {
        const int code = x == nullptr ? 0 : (*x)[f * p.samples + i];
        cell = {code, 0, data.z[i]};
        return code < bins && data.z[i] >= 0;
      });
      good &= e.samples == result.first[f] && simt::close(e.nats, result.second[f], 1e-12);
    }
    simt::check(good, "grouped_entropy: bins=%d z=%d missing=%d", bins, p.z_values, p.missing);
    return result;
  };
  const auto [x_valid, xz] = grouped(&data.x, p.x_features, p.x_bins);
  const auto [y_valid, yz] = grouped(&data.y, p.y_features, p.y_bins);
  const auto [z_valid, z] = grouped(nullptr, 1, 1);

  std::vector<float> result(p.x_features * p.y_features, -9);
  const simmim::ConditionalTableArgs args{
      given,
      {data.x.data(), p.symmetric ? data.x.data() : data.y.data(), p.x_features, p.y_features,
       p.samples, p.x_bins, p.y_bins},
      p.symmetric,
      x_valid.data(),
      y_valid.data(),
      z_valid.data(),
      xz.data(),
      yz.data(),
      z.data(),
      terms,
      2.0,
      result.data()};
  bool good = simmim::conditional_information_cuda(args, &fault, nullptr) == 0;
  int64_t expected_fault = kNone;
  for (int64_t pair = p.x_features * p.y_features; pair-- > 0;) {
    const int64_t f = pair / p.y_features, g = pair % p.y_features;
    if (p.symmetric && g < f) {
      good &= simt::close(result[pair], result[g * p.y_features + f], 0);
      continue;
    }
    const auto by = [&](bool x, bool y) {
      const double cells = (x ? p.x_bins : 1) * (y ? p.y_bins : 1) * alphabet;
      return entropy_by(p.samples, terms, cells, [&](int64_t i, auto& cell) {
        const int a = data.x[f * p.samples + i], b = data.y[g * p.samples + i];
        cell = {x ? a : 0, y ? b : 0, data.z[i]};
        return a < p.x_bins && b < p.y_bins && data.z[i] >= 0;
      });
    };
    const Entropy own = by(true, false);
    if (own.samples < 2) expected_fault = pair;
    const double joint = p.symmetric && f == g ? own.nats : by(true, true).nats;
    double value = (own.nats - by(false, false).nats) - (joint - by(false, true).nats);
    if (estimator == Estimator::plugin && value < 0) value = 0;
    good &= simt::close(result[pair], static_cast<float>(value / 2), 1e-6);
  }
  simt::check(good && fault == expected_fault, "conditional: samples=%ld z=%d estimator=%d",
              p.samples, p.z_values, int(estimator));
}

}  // namespace

int main() {
  for (int estimator = 0; estimator < 5; ++estimator) {
    check({2, 2, 203, 4, 5, 3, 20, false}, Estimator(estimator));
  }
  check({3, 3, 130, 4, 4, 7, 0, true}, Estimator::plugin);
  check({3, 3, 60, 4, 4, 2, 40, true}, Estimator::plugin);
  check({2, 1, 2, 2, 2, 1, 0, false}, Estimator::plugin);
  check({2, 2, 3, 3, 3, 2, 60, false}, Estimator::plugin);       // pairs without samples
  check({1, 1, 210, 100, 90, 60, 5, false}, Estimator::shrink);  // more cells than fit at once
  return simt::finish("conditional");
}

// Entropy of a table of counts, by five estimators; the one place that states their formulas.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace simmim {

enum class Estimator : int32_t {
  plugin,        // ln N - sum n ln n / N
  miller_madow,  // plugin + (observed cells - 1) / 2N
  grassberger,   // ln N - sum n G(n) / N (Grassberger 2003, arXiv:physics/0307138)
  chao_shen,     // Horvitz-Thompson with estimated coverage (Chao and Shen 2003)
  shrink,        // James-Stein towards uniform (Hausser and Strimmer 2009)
};

// Sums of terms are exact: each term is rounded once, to a fixed-point integer, so that a sum
// is the same in any order, on any number of threads, and for any split of the work. Hence
// a constant feature has entropy and information exactly 0, and I(X;Y) equals I(Y;X) bit for bit.
struct EntropyTerms {
  Estimator estimator = Estimator::plugin;
  double scale = 1;                // fixed-point units per nat
  const int64_t* table = nullptr;  // the terms of counts below table_size, worked out beforehand
  int64_t table_size = 0;
};

// Fixed point for estimators whose terms are parts of an entropy, at most about 40 nats in sum.
constexpr double kUnitScale = 0x1p48;

// ln n. Of small counts, which recur most, it is kept on the host.
#if !defined(__CUDA_ARCH__)
struct SmallLogs {
  static constexpr int64_t kSize = 4096;
  double of[kSize];
  SmallLogs() {
    for (int64_t n = 0; n < kSize; ++n) of[n] = log(static_cast<double>(n));
  }
};
inline const SmallLogs kSmallLogs;
#endif
SIMMIM_HD double log_of(int64_t n) {
#if !defined(__CUDA_ARCH__)
  // What is negative is no count, but must not be read for either.
  if (static_cast<uint64_t>(n) < SmallLogs::kSize) return kSmallLogs.of[n];
#endif
  return log(static_cast<double>(n));
}

// G(n) of Grassberger: G(1) = -gamma - ln 2, G(2m) = G(1) + 2 sum_{k<=m} 1 / (2k - 1),
// G(2m + 1) = G(2m). Above 40 by its asymptotic series, whose error is below 1e-15 there.
SIMMIM_HD double grassberger_g(int64_t n) {
  const int64_t m = n / 2;
  if (m >= 20) {
    const double r = 1.0 / (static_cast<double>(m) * static_cast<double>(m));
    return log(2.0 * static_cast<double>(m)) +
           r * (1.0 / 24 + r * (-7.0 / 960 + r * (31.0 / 8064 + r * (-127.0 / 30720))));
  }
  double sum = 0;
  for (int64_t k = m; k >= 1; --k) sum += 1.0 / static_cast<double>(2 * k - 1);
  return 2 * sum - 0.57721566490153286061 - 0.69314718055994530942;
}

SIMMIM_HD int64_t fixed_point(double value, double scale) {
  return static_cast<int64_t>(rint(value * scale));
}

// n ln n, or n G(n), in fixed point: the term of one cell for the estimators of one pass.
SIMMIM_HD int64_t compute_term(const EntropyTerms& terms, int64_t count) {
  if (count == 0) return 0;
  const double n = static_cast<double>(count);
  const double l = terms.estimator == Estimator::grassberger ? grassberger_g(count) : log_of(count);
  return fixed_point(n * l, terms.scale);
}

SIMMIM_HD int64_t term(const EntropyTerms& terms, int64_t count) {
  const bool tabulated = static_cast<uint64_t>(count) < static_cast<uint64_t>(terms.table_size);
  return tabulated ? terms.table[count] : compute_term(terms, count);
}

// Terms for up to `samples` samples. The scale makes N ln N take 50 bits: a sum stays far from
// overflow, and its rounding, at most half a unit per cell, below 1e-9 nats.
SIMMIM_HD EntropyTerms entropy_terms(Estimator estimator, int64_t samples) {
  const double n = static_cast<double>(samples < 2 ? 2 : samples);
  EntropyTerms terms;
  terms.estimator = estimator;
  terms.scale = ldexp(1.0, 50 - ilogb(n * log(n)));
  return terms;
}

// Chao and Shen's term: with coverage C and p = C n / N, -p ln p / (1 - (1 - p)^N).
SIMMIM_HD double chao_shen_term(double count, double samples, double coverage) {
  const double p = coverage * count / samples;
  if (p >= 1) return 0;
  return p * log(p) / expm1(samples * log1p(-p));
}

// What a sum over cells is where one thread visits them all.
struct OwnTotal {
  template <typename Sum>
  SIMMIM_HD Sum operator()(Sum sum) const {
    return sum;
  }
};

// Adds up counts; -1 where one of them is negative or their sum is 2^63 or more, in any order.
struct AddCounts {
  SIMMIM_HD int64_t operator()(int64_t a, int64_t b) const {
    const uint64_t sum = static_cast<uint64_t>(a) + static_cast<uint64_t>(b);
    const uint64_t signs = static_cast<uint64_t>(a) | static_cast<uint64_t>(b) | sum;
    return signs >> 63 != 0 ? -1 : static_cast<int64_t>(sum);
  }
};

// What the estimators of one pass over the cells need of them.
struct CellSums {
  int64_t terms = 0;     // fixed point
  int64_t observed = 0;  // cells that are not empty
};

SIMMIM_HD bool takes_sums(Estimator estimator) {
  return estimator == Estimator::plugin || estimator == Estimator::miller_madow ||
         estimator == Estimator::grassberger;
}

// Entropy in nats of `samples` counted samples, for an estimator that takes sums.
SIMMIM_HD double entropy_of_sums(const EntropyTerms& terms, int64_t samples, const CellSums& sums) {
  const double n = static_cast<double>(samples);
  const double sum = static_cast<double>(sums.terms);
  if (terms.estimator == Estimator::grassberger) return log(n) - sum / (terms.scale * n);
  const double plugin = static_cast<double>(term(terms, samples) - sums.terms) / (terms.scale * n);
  if (terms.estimator == Estimator::plugin) return plugin;
  return plugin + static_cast<double>(sums.observed - 1) / (2 * n);
}

// Entropy in nats of `samples` counted samples. `cells` calls its argument with the count of every
// cell, in any order; empty cells may be left out. `alphabet` is the number of cells, empty ones
// included, and matters to `shrink` alone. Where several threads share the cells, each visits its
// own, and `total` adds up what they found.
template <typename Cells, typename Total = OwnTotal>
SIMMIM_HD double entropy_of_cells(const EntropyTerms& terms, int64_t samples, double alphabet,
                                  Cells&& cells, const Total& total = {}) {
  const double n = static_cast<double>(samples);
  switch (terms.estimator) {
    case Estimator::plugin:
    case Estimator::miller_madow:
    case Estimator::grassberger: {
      CellSums sums;
      cells([&](int64_t count) {
        sums.terms += term(terms, count);
        sums.observed += count > 0;
      });
      sums.terms = total(sums.terms);
      if (terms.estimator == Estimator::miller_madow) sums.observed = total(sums.observed);
      return entropy_of_sums(terms, samples, sums);
    }
    case Estimator::chao_shen: {
      int64_t singletons = 0;
      cells([&](int64_t count) { singletons += count == 1; });
      singletons = total(singletons);
      if (singletons == samples) --singletons;  // a coverage of 0 would lose everything
      const double coverage = 1 - static_cast<double>(singletons) / n;
      int64_t sum = 0;
      cells([&](int64_t count) {
        if (count > 0) {
          const double part = chao_shen_term(static_cast<double>(count), n, coverage);
          sum += fixed_point(part, kUnitScale);
        }
      });
      return static_cast<double>(total(sum)) / kUnitScale;
    }
    case Estimator::shrink: {
      double squares = 0;
      int64_t observed = 0;
      cells([&](int64_t count) {
        const double c = static_cast<double>(count);
        squares += c * c;
        observed += count > 0;
      });
      const double target = 1 / alphabet;
      const double concentration = total(squares) / (n * n);
      const double distance = concentration - target;  // sum of (n / N - 1 / alphabet)^2
      double intensity = distance > 0 ? (1 - concentration) / ((n - 1) * distance) : 1;
      intensity = intensity > 1 ? 1 : intensity;
      const double base = intensity * target;
      int64_t sum = 0;
      cells([&](int64_t count) {
        if (count > 0) {
          const double p = base + (1 - intensity) * static_cast<double>(count) / n;
          sum += fixed_point(-p * log(p), kUnitScale);
        }
      });
      const double empty = alphabet - static_cast<double>(total(observed));
      const double rest = base > 0 ? -empty * base * log(base) : 0;
      return static_cast<double>(total(sum)) / kUnitScale + rest;
    }
  }
  return 0;
}

// Entropy in nats of the cells of an array, `stride` apart.
template <typename Count>
SIMMIM_HD double entropy_of_counts(const EntropyTerms& terms, int64_t samples, double alphabet,
                                   const Count* counts, int64_t cells, int64_t stride = 1) {
  return entropy_of_cells(terms, samples, alphabet, [&](auto&& visit) {
    for (int64_t i = 0; i < cells; ++i) visit(static_cast<int64_t>(counts[i * stride]));
  });
}

// The entropy of every row of a table of counts, by the terms of its own number of samples.
struct EntropyArgs {
  const int64_t* counts;  // [features, bins]
  int64_t features;
  int64_t bins;
  Estimator estimator;
  double nats_per_unit;
  float* entropy;  // [features]
};

// Each feature's valid samples and its entropy over them, by terms that all of them share.
struct MarginalsArgs {
  const int64_t* counts;  // [features, bins]
  int64_t features;
  int64_t bins;
  EntropyTerms terms;
  int64_t* valid;   // [features]
  double* entropy;  // [features] nats
};

// On a cudaStream_t; they return a cudaError_t. A feature of fewer than 2 samples, or whose counts
// AddCounts does not add up, gets NaN, and the first of them is reported: *first_fault, on the
// device, becomes the smallest index at fault.
int entropy_cuda(const EntropyArgs& args, int64_t* first_fault, void* stream);
int marginals_cuda(const MarginalsArgs& args, int64_t* first_fault, void* stream);

// Fills table [size] on the device with the terms of the counts 0, 1, ...
int tabulate_cuda(const EntropyTerms& terms, int64_t* table, int64_t size, void* stream);

// Reports the first of `count` codes that is neither below bins nor kInvalidCode.
int check_codes_cuda(const uint8_t* codes, int64_t count, int32_t bins, int64_t* first_fault,
                     void* stream);

}  // namespace simmim

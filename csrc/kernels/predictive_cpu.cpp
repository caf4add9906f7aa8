#include <cmath>
#include <limits>
#include <vector>

#include "predictive.h"

namespace simmim {

// With s = logit - max and Z = sum exp(s): p = exp(s) / Z and H(p) = ln Z - sum p s.
// A logit of -inf is a class that is ruled out.
template <typename Scalar>
void predictive_sums_cpu(const PredictiveInformationArgs<Scalar>& args, int64_t begin, int64_t end,
                         PredictiveSums& sums) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> weights(static_cast<size_t>(args.classes));
  for (int64_t sample = begin; sample < end; ++sample) {
    const Scalar* row = args.logits + sample * args.classes;
    double largest = -kInfinity;
    bool nan = false;
    for (int64_t c = 0; c < args.classes; ++c) {
      const double logit = static_cast<double>(row[c]);
      nan |= logit != logit;
      if (logit > largest) largest = logit;
    }
    if (nan || std::isinf(largest)) {
      sums.bad_sample = sample;
      return;
    }
    double total = 0, weighted = 0;
    for (int64_t c = 0; c < args.classes; ++c) {
      const double shifted = static_cast<double>(row[c]) - largest;
      weights[c] = std::exp(shifted);
      total += weights[c];
      if (weights[c] > 0) weighted += weights[c] * shifted;
    }
    for (int64_t c = 0; c < args.classes; ++c) sums.probabilities[c] += weights[c] / total;
    sums.entropy += std::log(total) - weighted / total;
  }
}

template void predictive_sums_cpu(const PredictiveInformationArgs<float>&, int64_t, int64_t,
                                  PredictiveSums&);
template void predictive_sums_cpu(const PredictiveInformationArgs<double>&, int64_t, int64_t,
                                  PredictiveSums&);

}  // namespace simmim

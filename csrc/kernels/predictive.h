// How much a classifier's predictions tell about its inputs.
#pragma once

#include <cstdint>

namespace simmim {

template <typename Scalar>
struct PredictiveInformationArgs {
  const Scalar* logits;  // [samples, classes], contiguous
  int64_t samples;
  int64_t classes;
};

// Sums over samples begin..end of p(y|x) = softmax(logits), in double.
struct PredictiveSums {
  double* probabilities;    // [classes], added to
  double entropy = 0;       // of H(p(y|x)), nats
  int64_t bad_sample = -1;  // the first with NaN, +inf or no finite logit at all; ends the sum
};

template <typename Scalar>
void predictive_sums_cpu(const PredictiveInformationArgs<Scalar>& args, int64_t begin, int64_t end,
                         PredictiveSums& sums);

}  // namespace simmim

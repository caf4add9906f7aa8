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

// A sample to each lane of a vector, or of as many vectors as make so many lanes: on any target
// sums are in the same order.
constexpr int64_t kPredictiveLanes = 8;
template <typename Scalar>
void predictive_sums_cpu(const PredictiveInformationArgs<Scalar>& args, int64_t begin, int64_t end,
                         PredictiveSums& sums);

// On a cudaStream_t; returns a cudaError_t. Pointers are the device's. *result is H(mean p) -
// mean H(p) in units of nats_per_unit; NaN where a sample is bad, the first of which
// *first_fault becomes. `scratch`: predictive_scratch_cuda(...) values.
int64_t predictive_scratch_cuda(int64_t samples, int64_t classes);
template <typename Scalar>
int predictive_information_cuda(const PredictiveInformationArgs<Scalar>& args, double nats_per_unit,
                                double* scratch, float* result, int64_t* first_fault, void* stream);

}  // namespace simmim

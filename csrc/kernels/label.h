// Information of coded features about a class label, or about soft labels (class probabilities).
#pragma once

#include <cstdint>

#include "entropy.h"
#include "information.h"

namespace simmim {

struct LabelInformationArgs {
  const uint8_t* x;            // codes [features, samples], contiguous
  const uint32_t* order;       // [samples] the samples, sorted by label
  const int64_t* group_begin;  // [groups + 1] where in `order` each label that occurs begins
  int64_t features;
  int64_t samples;
  int64_t groups;
  int32_t bins;    // 2..256
  double classes;  // the labels' alphabet, counting those that do not occur
  EntropyTerms terms;
  Information information;
  float* result;  // [features]
};

struct SoftLabelInformationArgs {
  const uint8_t* x;             // codes [features, samples], contiguous
  const double* probabilities;  // [samples, classes], rows sum to 1
  int64_t features;
  int64_t samples;
  int64_t classes;
  int32_t bins;        // 2..256
  EntropyTerms terms;  // of the plug-in estimator, for H(X)
  Information information;
  float* result;  // [features]
};

// Features feature_begin..feature_end, each of which has at least 2 valid samples.
void label_information_cpu(const LabelInformationArgs& args, int64_t feature_begin,
                           int64_t feature_end);
void soft_label_information_cpu(const SoftLabelInformationArgs& args, int64_t feature_begin,
                                int64_t feature_end);

}  // namespace simmim

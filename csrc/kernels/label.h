// Information of coded features about a class label, or about soft labels (class probabilities).
#pragma once

#include <cstdint>

#include "entropy.h"
#include "information.h"
#include "joint.h"

namespace simmim {

struct LabelInformationArgs {
  // Counts of feature f, label group g and bin b at f * feature_stride + g * group_stride + b.
  const int64_t* counts;
  int64_t feature_stride;
  int64_t group_stride;
  int64_t groups;  // labels that occur
  int32_t bins;    // 2..256
  double classes;  // the labels' alphabet, counting those that do not occur
  EntropyTerms terms;
  Information information;
  float* result;  // [features]
};

// The same for more labels than it pays to keep counts of: one label after another.
struct SortedLabelInformationArgs {
  const uint8_t* x;       // codes [features, samples], contiguous
  const uint32_t* order;  // [samples] the samples, sorted by label
  SampleGroups groups;    // in that order: the labels that occur
  int64_t features;
  int64_t samples;
  int32_t bins;    // 2..256
  double classes;  // the labels' alphabet, counting those that do not occur
  EntropyTerms terms;
  Information information;
  float* result;  // [features]
};

// n ln n of a sum of probabilities.
SIMMIM_HD double n_log_n(double n) { return n > 0 ? n * log(n) : 0; }

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
void sorted_label_information_cpu(const SortedLabelInformationArgs& args, int64_t feature_begin,
                                  int64_t feature_end);
// The features that it pays to take together: what is read of the probabilities serves them all.
constexpr int64_t kSoftLabelFeatures = 16;
void soft_label_information_cpu(const SoftLabelInformationArgs& args, int64_t feature_begin,
                                int64_t feature_end);

// What label_information needs on CUDA, where counters in shared memory take samples in any order.
// Pointers are the device's, and so is what only the labels say.
struct LabelTableArgs {
  const uint8_t* x;        // codes [features, samples], contiguous
  const int32_t* labels;   // [samples] below *classes; -1: the sample counts nowhere
  const int64_t* classes;  // the largest label + 1
  const double* alphabet;  // of the labels
  int64_t most_classes;    // what *classes is at most
  int64_t features;
  int64_t samples;
  int32_t bins;  // 2..256
  EntropyTerms terms;
  Information information;
  float* result;  // [features]; NaN where fewer than 2 samples are valid
};

// On a cudaStream_t; they return a cudaError_t.
int label_information_cuda(const LabelTableArgs& args, void* stream);

// x_entropy [features] is H(X) in nats; scratch holds soft_label_scratch(args) bytes, from a
// multiple of 16 on.
int64_t soft_label_scratch(const SoftLabelInformationArgs& args);
int soft_label_information_cuda(const SoftLabelInformationArgs& args, const int64_t* valid,
                                const double* x_entropy, void* scratch, void* stream);

}  // namespace simmim

// Joint histograms of pairs of coded features, and the information of every pair.
#pragma once

#include <cstdint>

#include "entropy.h"
#include "information.h"

namespace simmim {

// Codes of the same samples in two sets of features. A code that is no bin (kInvalidCode where
// there are fewer than 256 bins) leaves its sample out of every pair with that feature.
struct CodePair {
  const uint8_t* x;  // [x_features, samples], contiguous
  const uint8_t* y;  // [y_features, samples], contiguous
  int64_t x_features;
  int64_t y_features;
  int64_t samples;
  int32_t x_bins;  // 2..256
  int32_t y_bins;  // 2..256
};

// Samples sorted by a label: those of one label lie side by side.
struct SampleGroups {
  const int64_t*
      begin;  // [count + 1] where each label that occurs begins; 0 and samples at the ends
  int64_t count;
};

struct JointHistogramArgs {
  CodePair codes;
  int64_t* counts;  // [x_features, y_features, x_bins, y_bins], overwritten
};

struct PairwiseInformationArgs {
  CodePair codes;
  bool symmetric;           // x and y are the same features: the pairs y >= x give the rest too
  const int64_t* x_valid;   // [x_features] valid samples
  const int64_t* y_valid;   // [y_features]
  const double* x_entropy;  // [x_features] nats, over the valid samples of the feature
  const double* y_entropy;  // [y_features]
  EntropyTerms terms;
  Information information;
  float* result;  // [x_features, y_features]
};

struct JointInformationArgs {
  const int64_t* counts;  // [pairs, x_bins, y_bins]
  int64_t pairs;
  int32_t x_bins;
  int32_t y_bins;
  Estimator estimator;
  Information information;
  float* result;  // [pairs]
};

// Features x_begin..x_end against y_begin..y_end: the unit of work, small enough to be
// interrupted in between and to balance over threads.
struct PairBlock {
  int64_t x_begin, x_end, y_begin, y_end;
};

void joint_histogram_cpu(const JointHistogramArgs& args, const PairBlock& block);

// Joint counts stay in a scratch of at most 14 MiB. Returns the first pair, as
// x * y_features + y, that shares fewer than two valid samples (its result is left as it was), or
// -1.
int64_t pairwise_information_cpu(const PairwiseInformationArgs& args, const PairBlock& block);

// Pairs pair_begin..pair_end. Returns likewise.
int64_t joint_information_cpu(const JointInformationArgs& args, int64_t pair_begin,
                              int64_t pair_end);

// On a cudaStream_t; they return a cudaError_t. Pointers are the device's. A pair that shares fewer
// than two valid samples, or whose counts AddCounts does not add up, gets NaN, and *first_fault, on
// the device, becomes the smallest such index.
int joint_histogram_cuda(const JointHistogramArgs& args, void* stream);
int joint_information_cuda(const JointInformationArgs& args, int64_t* first_fault, void* stream);

// `scratch`: so many words, on the device, the current one, which need no particular content.
int64_t pairwise_scratch_words(const PairwiseInformationArgs& args);
int pairwise_information_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                              int64_t* first_fault, void* stream);

}  // namespace simmim

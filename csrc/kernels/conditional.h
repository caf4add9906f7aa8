// Information that pairs of coded features share beyond a third variable.
#pragma once

#include <cstdint>

#include "joint.h"

namespace simmim {

// I(X;Y|Z) = H(X,Z) + H(Y,Z) - H(X,Y,Z) - H(Z), each entropy by the estimator in `terms`.
struct ConditionalInformationArgs {
  CodePair codes;            // the samples sorted by z
  SampleGroups groups;       // the values of z that occur
  double z_alphabet;         // the number of values z can take, counting those that do not occur
  bool symmetric;            // x and y are the same features: the pairs y >= x give the rest too
  const int64_t* x_valid;    // [x_features] valid samples
  const int64_t* y_valid;    // [y_features]
  const double* xz_entropy;  // [x_features] nats, over the valid samples of the feature
  const double* yz_entropy;  // [y_features]
  double z_entropy;          // nats, over all samples
  EntropyTerms terms;
  double nats_per_unit;
  float* result;  // [x_features, y_features]
};

struct GroupedEntropyArgs {
  const uint8_t* x;  // codes [features, samples], the samples sorted by z
  SampleGroups groups;
  int64_t features;
  int64_t samples;
  int32_t bins;
  double z_alphabet;
  EntropyTerms terms;
  double* entropy;  // [features] H(X,Z) in nats over the valid samples; 0 where fewer than two
};

void grouped_entropy_cpu(const GroupedEntropyArgs& args, int64_t feature_begin,
                         int64_t feature_end);

// Counts stay in a scratch of at most 14 MiB. Returns the first pair, as x * y_features + y, that
// shares fewer than two valid samples (its result is left as it was), or -1.
int64_t conditional_information_cpu(const ConditionalInformationArgs& args, const PairBlock& block);

// What both need on CUDA, where counters in shared memory take samples in any order. Pointers are
// the device's, and so is what only z says.
struct Given {
  const int32_t* z;        // [samples] below *values; -1: the sample counts nowhere
  const int64_t* values;   // the largest z + 1
  const double* alphabet;  // of z
  int64_t most_values;     // what *values is at most
};

struct GroupedTableArgs {
  Given given;
  const uint8_t* x;  // codes [features, samples]; null, with 1 bin: z alone
  int64_t features;
  int64_t samples;
  int32_t bins;
  EntropyTerms terms;
  int64_t* valid;   // [features] samples that have x and z
  double* entropy;  // [features] H(X,Z) in nats over them; NaN where fewer than two
};

struct ConditionalTableArgs {
  Given given;
  CodePair codes;
  bool symmetric;
  const int64_t* x_valid;  // as GroupedTableArgs has it
  const int64_t* y_valid;
  const int64_t* z_valid;  // one value: of z alone
  const double* xz_entropy;
  const double* yz_entropy;
  const double* z_entropy;
  EntropyTerms terms;
  double nats_per_unit;
  float* result;  // [x_features, y_features]
};

// On a cudaStream_t; they return a cudaError_t. What shares fewer than two valid samples gets NaN,
// and *first_fault, on the device, becomes the smallest index of such a feature or pair.
int grouped_entropy_cuda(const GroupedTableArgs& args, int64_t* first_fault, void* stream);
int conditional_information_cuda(const ConditionalTableArgs& args, int64_t* first_fault,
                                 void* stream);

}  // namespace simmim

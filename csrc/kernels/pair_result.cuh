// What both kernels of pairwise information do once they have counted a pair.
#pragma once

#include "joint.h"
#include "totals.cuh"

namespace simmim {

// Of one pair: the entropies, in nats, over the samples that are valid in both features.
struct PairEntropies {
  double x, y, joint;
  int64_t samples;
};

__device__ __forceinline__ bool has_gaps(const PairwiseInformationArgs& args, int64_t x,
                                         int64_t y) {
  return args.x_valid[x] < args.codes.samples || args.y_valid[y] < args.codes.samples;
}

// Over all samples, where there are no gaps; the joint entropy is still to be found.
__device__ __forceinline__ PairEntropies entropies_without_gaps(const PairwiseInformationArgs& args,
                                                                int64_t x, int64_t y) {
  return {args.x_entropy[x], args.y_entropy[y], 0, args.x_valid[x]};
}

// NaN and a fault where the pair shares fewer than two samples.
__device__ __forceinline__ void store_pair(const PairwiseInformationArgs& args, int64_t x,
                                           int64_t y, PairEntropies pair, int64_t* first_fault) {
  const int64_t index = x * args.codes.y_features + y;
  if (pair.samples < 2) {
    report_fault(first_fault, index);
    pair.joint = NAN;
  }
  if (args.symmetric && x == y) {  // H(X,X) = H(X), whatever the estimator
    pair = {args.x_entropy[x], args.x_entropy[x], args.x_entropy[x], args.x_valid[x]};
  }
  args.result[index] = information(args.information, pair.x, pair.y, pair.joint);
  if (args.symmetric) {
    args.result[y * args.codes.y_features + x] =
        information(args.information, pair.y, pair.x, pair.joint);
  }
}

}  // namespace simmim

// Values turned into codes, and the edges of bins that hold equally many samples.
#pragma once

#include <cstdint>

#include "binning.h"

namespace simmim {

// Stored is double, float, Half or BFloat16.
template <typename Stored>
struct DiscretizeArgs {
  const Stored* x;  // [samples, features], any strides
  int64_t samples;
  int64_t features;
  int64_t sample_stride;   // in elements
  int64_t feature_stride;  // in elements
  Binning<compute_t<Stored>> binning;
  uint8_t* codes;  // [features, samples]; kInvalidCode where a sample has no bin
};

// Samples [sample_begin, sample_end) of features [feature_begin, feature_end). Returns how many
// have no bin.
template <typename Stored>
int64_t discretize_cpu(const DiscretizeArgs<Stored>& args, int64_t feature_begin,
                       int64_t feature_end, int64_t sample_begin, int64_t sample_end);

// Everything, asynchronously on a cudaStream_t. Returns a cudaError_t. *first_uncounted, on the
// device where it is not null, becomes the first feature of which a sample has no bin.
template <typename Stored>
int discretize_cuda(const DiscretizeArgs<Stored>& args, int64_t* first_uncounted, void* stream);

// Between low and high, exactly low where they are equal, and without overflow; rounded product by
// product, so that no device fuses what another does not.
SIMMIM_HD double interpolate(double low, double high, double fraction) {
#ifdef __CUDA_ARCH__
  const auto times = [](double a, double b) { return __dmul_rn(a, b); };
#else
  const auto times = [](double a, double b) { return a * b; };
#endif
  const double width = high - low;
  const bool finite = width - width == 0;
  const double value =
      finite ? low + times(width, fraction) : times(low, 1 - fraction) + times(high, fraction);
  return value < low ? low : value > high ? high : value;
}

template <typename Stored>
struct QuantileEdgesArgs {
  const Stored* x;  // [samples, features], any strides
  int64_t samples;
  int64_t features;
  int64_t sample_stride;
  int64_t feature_stride;
  int32_t bins;
  bool omit_nan;
  bool omit_infinite;
  double* edges;  // [features, bins + 1] ascending
};

// The features that it pays to take together: as many as share a cache line of x, or some of them.
constexpr int64_t kQuantileFeatures = 16;
// Bytes that each of them takes meanwhile, at the most.
template <typename Stored>
constexpr int64_t kQuantileScratch = int64_t{sizeof(Stored) == 8 ? 4 : 2} << 20;

// Edge k of a feature is its k / bins quantile, interpolated linearly as numpy.quantile does; equal
// values lie between the same edges, since edges may coincide. Returns false where a feature has
// NaN or infinity that is not omitted; its edges are 0 then, as where nothing is left.
template <typename Stored>
bool quantile_edges_cpu(const QuantileEdgesArgs<Stored>& args, int64_t feature_begin,
                        int64_t feature_end);

// The same of columns that are sorted, NaN last, as float or double; on a cudaStream_t. Returns a
// cudaError_t; *first_fault, on the device, becomes the first feature that has what it may not.
template <typename Value>
int sorted_quantile_edges_cuda(const QuantileEdgesArgs<Value>& args, int64_t* first_fault,
                               void* stream);

}  // namespace simmim

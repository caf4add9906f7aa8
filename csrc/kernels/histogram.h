// Marginal histograms of a batch of features.
#pragma once

#include <cstdint>

#include "binning.h"

namespace simmim {

// Stored is double, float, Half or BFloat16 (values, binned as they are read) or uint8_t (codes,
// each its own bin; kInvalidCode and whatever else is no bin is not counted).
template <typename Stored>
struct HistogramArgs {
  const Stored* x;  // [samples, features], any strides
  int64_t samples;
  int64_t features;
  int64_t sample_stride;   // in elements
  int64_t feature_stride;  // in elements
  Binning<compute_t<Stored>> binning;
  int64_t* counts;  // [features, bins], added to
  // Which rows of x the samples are, below 2^32; null: sample i is row i. CPU only.
  const uint32_t* order = nullptr;
};

// Counts samples [sample_begin, sample_end) of features [feature_begin, feature_end).
template <typename Stored>
void histogram_cpu(const HistogramArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
                   int64_t sample_begin, int64_t sample_end);

// Counts everything, asynchronously on a cudaStream_t. Returns a cudaError_t. *first_uncounted, on
// the device where it is not null, becomes the first feature of which something is not counted.
template <typename Stored>
int histogram_cuda(const HistogramArgs<Stored>& args, int64_t* first_uncounted, void* stream);

}  // namespace simmim

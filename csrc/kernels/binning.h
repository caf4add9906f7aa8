// The one rule that turns a value into a bin, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "half.h"
#include "host_device.h"

namespace simmim {

// The stored code of a sample that counts nowhere: NaN omitted, outlier dropped.
constexpr uint8_t kInvalidCode = 255;
// The same while binning, where 256 bins use every stored value.
constexpr int32_t kNoBin = -1;

// The bins of every feature: half-open, the last one closed, as numpy.histogram.
// Uniform bins are given by low, high and scale = bins / (high - low) (0 where low == high); any
// others by ascending edges, which also serve ranges too narrow or too wide for a finite scale.
template <typename Compute>
struct Binning {
  const Compute* low = nullptr;    // [features]
  const Compute* high = nullptr;   // [features]
  const Compute* scale = nullptr;  // [features]
  // What holds of every feature where there are no such arrays. CUDA only.
  Compute shared_low = 0, shared_high = 0, shared_scale = 0;
  const double* edges = nullptr;  // [bins + 1] or [features, bins + 1]; null: uniform
  int64_t edge_stride = 0;        // 0 or bins + 1
  int32_t bins = 0;               // 2..256
  bool clip = false;              // outliers count in the first and the last bin
};

// The bin of a value in [low, high]. Subtracting first makes x == low exactly bin 0, and leaves no
// multiply-add that one device could fuse and another not.
template <typename Compute>
SIMMIM_HD int32_t uniform_bin(Compute value, Compute low, Compute scale, int32_t bins) {
  const int32_t bin = static_cast<int32_t>((value - low) * scale), last = bins - 1;
  return bin < last ? bin : last;
}

// The bin of a value in [edges[0], edges[bins]]: that of the last edge not above it.
SIMMIM_HD int32_t edge_bin(double value, const double* edges, int32_t bins) {
  int32_t bin = 0;
  for (int32_t step = bins > 16 ? 128 : 8; step > 0; step /= 2) {  // free of branches
    const int32_t next = bin + step < bins ? bin + step : bins - 1;
    bin = edges[next] <= value ? next : bin;
  }
  return bin;
}

// The bins of one feature: low, high and scale, or else edges.
template <typename Compute>
struct FeatureBins {
  Compute low, high, scale;
  const double* edges;  // [bins + 1], or null
  int32_t bins;
  bool clip;
};

template <typename Compute>
SIMMIM_HD FeatureBins<Compute> bins_of(const Binning<Compute>& binning, int64_t feature) {
  FeatureBins<Compute> result{binning.shared_low,   binning.shared_high,
                              binning.shared_scale, nullptr,
                              binning.bins,         binning.clip};
  if (binning.edges != nullptr) {
    result.edges = binning.edges + feature * binning.edge_stride;
  } else if (binning.low != nullptr) {
    result.low = binning.low[feature];
    result.high = binning.high[feature];
    result.scale = binning.scale[feature];
  }
  return result;
}

// The bin of any value, or kNoBin for NaN and for what lies outside the range.
template <typename Compute>
SIMMIM_HD int32_t bin_of(Compute value, const FeatureBins<Compute>& of) {
  if (of.edges == nullptr) {
    if (of.clip) value = value < of.low ? of.low : value > of.high ? of.high : value;
    if (!(value >= of.low && value <= of.high)) return kNoBin;
    return uniform_bin(value, of.low, of.scale, of.bins);
  }
  const double low = of.edges[0], high = of.edges[of.bins];
  double wide = static_cast<double>(value);
  if (of.clip) wide = wide < low ? low : wide > high ? high : wide;
  if (!(wide >= low && wide <= high)) return kNoBin;
  return edge_bin(wide, of.edges, of.bins);
}

// The bin of what is stored: a value, or a code, which is its own bin.
template <typename Stored>
SIMMIM_HD int32_t stored_bin(Stored stored, const FeatureBins<compute_t<Stored>>& of) {
  if constexpr (sizeof(Stored) == 1) {
    return stored < of.bins ? stored : kNoBin;
  } else {
    return bin_of(static_cast<compute_t<Stored>>(stored), of);
  }
}
template <typename Stored>
SIMMIM_HD int32_t stored_bin(Stored stored, const Binning<compute_t<Stored>>& binning,
                             int64_t feature) {
  return stored_bin(stored, bins_of(binning, feature));
}

// The smallest and largest value of each feature, NaN left out.
template <typename Stored>
struct RangeArgs {
  const Stored* x;  // [samples, features], any strides
  int64_t samples;
  int64_t features;
  int64_t sample_stride;    // in elements
  int64_t feature_stride;   // in elements
  bool finite;              // infinity is left out too
  compute_t<Stored>* low;   // [features]; infinity where nothing is left
  compute_t<Stored>* high;  // [features]; minus infinity likewise
};

// The scale of uniform bins; not finite where the range is too narrow or too wide for one.
template <typename Compute>
SIMMIM_HD Compute scale_of(Compute low, Compute high, int32_t bins) {
  const Compute width = high - low;
  if (!(width - width == 0)) return width;
  return width == 0 ? 0 : static_cast<Compute>(bins) / width;
}

// Ranges made ready for uniform bins.
template <typename Compute>
struct ScaleArgs {
  const double* low;   // [features], so many values apart
  const double* high;  // likewise
  int64_t low_stride;
  int64_t high_stride;
  int64_t features;
  int32_t bins;
  Compute* bounds;  // [3, features]: low (NaN where there is no scale), high and scale
};

// On a cudaStream_t; they return a cudaError_t. *first_..., on the device, becomes the smallest
// index at fault: of a range that is not finite or has low > high, of a good one without a scale;
// of an edge [rows, columns] that is not finite, of one below the edge before it.
template <typename Compute>
int scale_cuda(const ScaleArgs<Compute>& args, int64_t* first_bad, int64_t* first_without_scale,
               void* stream);
int check_edges_cuda(const double* edges, int64_t rows, int64_t columns, int64_t* first_infinite,
                     int64_t* first_descending, void* stream);

// Of samples [sample_begin, sample_end) of features [feature_begin, feature_end).
template <typename Stored>
void range_cpu(const RangeArgs<Stored>& args, int64_t feature_begin, int64_t feature_end,
               int64_t sample_begin, int64_t sample_end);

}  // namespace simmim

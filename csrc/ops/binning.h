// Checks and resolves how a batch of features is binned, for every operator that bins values.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>

#include "../kernels/binning.h"

namespace simmim {

// Error texts begin with the public function that was called, caller, and call x what its caller
// does, argument.
struct BinningRequest {
  int64_t bins;
  std::optional<at::Tensor> low;    // [features], any floating dtype; with high, or neither:
  std::optional<at::Tensor> high;   //   each feature's own minimum and maximum
  std::optional<at::Tensor> edges;  // [bins + 1] or [features, bins + 1], instead of low and high
  std::optional<std::pair<double, double>> shared_range;  // likewise: of every feature
  bool omit_nan;
  bool drop_outliers;
  bool clip_outliers;
  std::string caller;
  std::string argument;

  BinningRequest(int64_t bins, std::optional<at::Tensor> low, std::optional<at::Tensor> high,
                 std::optional<at::Tensor> edges, c10::string_view nan_policy,
                 c10::string_view outliers, c10::string_view caller,
                 c10::string_view argument = "x", std::optional<double> shared_low = {},
                 std::optional<double> shared_high = {});
  bool gives_range() const { return low || edges || shared_range; }
};

// The tensors behind a kernel's Binning, on x's device and in its compute dtype.
struct ResolvedBinning {
  struct Shared {
    double low, high, scale;  // of the compute dtype too
  };

  at::Tensor low, high, scale;   // [features]
  std::optional<Shared> shared;  // of every feature, instead of them; CUDA only
  at::Tensor edges;              // [bins + 1] or [features, bins + 1] float64, or undefined
  int64_t bins;
  bool clip;

  // Of the features from `first` on.
  template <typename Compute>
  Binning<Compute> view(int64_t first = 0) const {
    Binning<Compute> binning;
    binning.bins = static_cast<int32_t>(bins);
    binning.clip = clip;
    if (edges.defined()) {
      binning.edge_stride = edges.dim() == 2 ? edges.size(1) : 0;
      binning.edges = edges.const_data_ptr<double>() + first * binning.edge_stride;
    } else if (low.defined()) {
      binning.low = low.const_data_ptr<Compute>() + first;
      binning.high = high.const_data_ptr<Compute>() + first;
      binning.scale = scale.const_data_ptr<Compute>() + first;
    } else if (shared) {
      binning.shared_low = static_cast<Compute>(shared->low);
      binning.shared_high = static_cast<Compute>(shared->high);
      binning.shared_scale = static_cast<Compute>(shared->scale);
    }
    return binning;
  }
};

// x [samples, features], floating or uint8 codes, which have neither range nor edges.
void check_samples(const at::Tensor& x, const BinningRequest& request);

// Raises where x, request or both are not fit for binning. On the CPU; binning_cuda.h is for CUDA.
ResolvedBinning resolve_binning(const at::Tensor& x, const BinningRequest& request);

// The parts of it that both have: what bins codes, and all else but for range or edges.
ResolvedBinning begin_binning(const at::Tensor& x, const BinningRequest& request);
// Shapes alone.
void check_edges(const at::Tensor& edges, int64_t features, const BinningRequest& request);
void check_bounds(const at::Tensor& low, const at::Tensor& high, int64_t features,
                  const BinningRequest& request);
void check_edge_values(bool finite, bool ascend, const BinningRequest& request);
[[noreturn]] void raise_bad_range(double low, double high, int64_t feature, const at::Tensor& x,
                                  const BinningRequest& request);
// k / bins for k = 0, 1, ..., bins, of the options' device and dtype.
at::Tensor bin_steps(int64_t bins, const at::TensorOptions& options);
// The bins of ranges that are too narrow or too wide for x's own arithmetic, in double precision.
at::Tensor edges_between(const at::Tensor& low, const at::Tensor& high, int64_t bins);

// Raises, naming feature and value, where the request allows no NaN or no outlier and x has one.
// Called once fewer samples were counted than there are, so it may be slow.
void raise_uncounted(const at::Tensor& x, const BinningRequest& request,
                     const ResolvedBinning& binning);

// Counts [features, bins] of features [first, first + features) of x. Raises where a sample has no
// bin and must have one.
void histogram_on_cpu(const at::Tensor& x, const BinningRequest& request,
                      const ResolvedBinning& binning, int64_t first, int64_t features,
                      int64_t* counts);

// Whether every sample must have a bin, so that a count short of one is an error.
inline bool must_count_all(const at::Tensor& x, const BinningRequest& request) {
  return at::isFloatingType(x.scalar_type())
             ? !(request.omit_nan && (request.drop_outliers || request.clip_outliers))
             : true;
}

// The type in which x's values are binned.
inline at::ScalarType compute_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The torch-free type that a tensor's elements are stored as.
template <typename Scalar>
struct StoredType {
  using type = Scalar;
};
template <>
struct StoredType<at::Half> {
  using type = Half;
};
template <>
struct StoredType<at::BFloat16> {
  using type = BFloat16;
};

// Runs a lambda in which Stored is the type of x's elements: values, or values and codes.
#define SIMMIM_DISPATCH_VALUES(x, name, ...)                                               \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, (x).scalar_type(), name, [&] { \
    using Stored = StoredType<scalar_t>::type;                                             \
    __VA_ARGS__();                                                                         \
  })
#define SIMMIM_DISPATCH_STORED(x, name, ...)                                                    \
  AT_DISPATCH_FLOATING_TYPES_AND3(at::kHalf, at::kBFloat16, at::kByte, (x).scalar_type(), name, \
                                  [&] {                                                         \
                                    using Stored = StoredType<scalar_t>::type;                  \
                                    __VA_ARGS__();                                              \
                                  })

}  // namespace simmim

#include "binning.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/nextafter.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "parallel.h"

namespace simmim {
namespace {

// Each feature's smallest and largest value, of those that may count: one read of x. What NaN may
// not be left out, counting misses later.
std::pair<at::Tensor, at::Tensor> range_of(const at::Tensor& x, const BinningRequest& request) {
  const int64_t samples = x.size(0), features = x.size(1);
  const auto options = x.options().dtype(compute_dtype(x));
  at::Tensor low = at::empty({features}, options), high = at::empty({features}, options);
  SIMMIM_DISPATCH_VALUES(x, "range", [&] {
    using Compute = compute_t<Stored>;
    auto *lows = low.mutable_data_ptr<Compute>(), *highs = high.mutable_data_ptr<Compute>();
    const RangeArgs<Stored> args{
        static_cast<const Stored*>(x.const_data_ptr()), samples, features, x.stride(0), x.stride(1),
        request.drop_outliers || request.clip_outliers, lows,    highs};
    const MatrixParts parts(samples, features, 2 * int64_t{sizeof(Compute)});
    std::vector<Compute> partial((parts.chunks - 1) * 2 * features);
    parts.run([&](int64_t chunk, int64_t feature_begin, int64_t feature_end, int64_t sample_begin,
                  int64_t sample_end) {
      RangeArgs<Stored> mine = args;
      if (chunk > 0) {
        mine.low = partial.data() + (chunk - 1) * 2 * features;
        mine.high = mine.low + features;
      }
      range_cpu(mine, feature_begin, feature_end, sample_begin, sample_end);
    });
    for (int64_t f = 0; f < features; ++f) {
      for (size_t i = f; i < partial.size(); i += 2 * features) {
        lows[f] = std::min(lows[f], partial[i]);
        highs[f] = std::max(highs[f], partial[i + features]);
      }
      if (lows[f] > highs[f]) lows[f] = highs[f] = 0;  // nothing is left
    }
  });
  return {std::move(low), std::move(high)};
}

// The same range for every feature, in the type that x is binned in.
std::pair<at::Tensor, at::Tensor> shared_range(const at::Tensor& x,
                                               const std::pair<double, double>& range) {
  const auto options = x.options().dtype(compute_dtype(x));
  const auto filled = [&](double end) {
    at::Tensor bound = at::empty({x.size(1)}, options);
    AT_DISPATCH_FLOATING_TYPES(bound.scalar_type(), "range", [&] {
      // Infinity where it is beyond the type. What fill_ takes would be felt in a small call.
      std::fill_n(bound.mutable_data_ptr<scalar_t>(), bound.numel(), static_cast<scalar_t>(end));
    });
    return bound;
  };
  return {filled(range.first), filled(range.second)};
}

// Bounds [features] in the type that x is compared in, rounded up (towards 1) or down (-1), so that
// what is beyond one of them is beyond the bound itself.
at::Tensor inward(const at::Tensor& bounds, const at::Tensor& x, double towards) {
  const at::Tensor near = bounds.to(compute_dtype(x)), exact = near.to(at::kDouble);
  const at::Tensor wrong = towards > 0 ? exact < bounds : exact > bounds;
  const double infinity = std::numeric_limits<double>::infinity();
  return at::where(wrong, near.nextafter(at::full_like(near, towards * infinity)), near);
}

// A value in so many digits that it does not look like another.
std::string told_apart(double value, double other) {
  const std::string text = c10::str(value);
  if (text != c10::str(other)) return text;
  std::ostringstream exact;
  exact << std::setprecision(17) << value;
  return exact.str();
}

int64_t first_of(const at::Tensor& flags) { return flags.nonzero().flatten()[0].item<int64_t>(); }

void check_range(const at::Tensor& low, const at::Tensor& high, const at::Tensor& x,
                 const BinningRequest& request) {
  const at::Tensor good = low.isfinite().logical_and_(high.isfinite()).logical_and_(low <= high);
  if (good.all().item<bool>()) return;
  const int64_t feature = first_of(good.logical_not());
  raise_bad_range(low[feature].item<double>(), high[feature].item<double>(), feature, x, request);
}

// The scale of uniform bins on the CPU; false where a range is not as it must be, or too narrow or
// too wide for x's own arithmetic.
bool scale_on_cpu(const at::Tensor& low, const at::Tensor& high, int64_t bins, at::Tensor& scale) {
  scale = at::empty_like(low);
  bool usable = true;
  AT_DISPATCH_FLOATING_TYPES(low.scalar_type(), "scale", [&] {
    const auto *lows = low.const_data_ptr<scalar_t>(), *highs = high.const_data_ptr<scalar_t>();
    auto* scales = scale.mutable_data_ptr<scalar_t>();
    for (int64_t f = 0; f < low.numel(); ++f) {
      scales[f] = scale_of(lows[f], highs[f], static_cast<int32_t>(bins));
      usable &= lows[f] <= highs[f] && std::isfinite(scales[f]);
    }
  });
  return usable;
}

}  // namespace

BinningRequest::BinningRequest(int64_t bins, std::optional<at::Tensor> low,
                               std::optional<at::Tensor> high, std::optional<at::Tensor> edges,
                               c10::string_view nan_policy, c10::string_view outliers,
                               c10::string_view caller, c10::string_view argument,
                               std::optional<double> shared_low, std::optional<double> shared_high)
    : bins(bins),
      low(std::move(low)),
      high(std::move(high)),
      edges(std::move(edges)),
      omit_nan(nan_policy == "omit"),
      drop_outliers(outliers == "drop"),
      clip_outliers(outliers == "clip"),
      caller(caller),
      argument(argument) {
  TORCH_CHECK_VALUE(omit_nan || nan_policy == "raise", caller,
                    ": nan_policy must be 'raise' or 'omit', got '", nan_policy, "'");
  TORCH_CHECK_VALUE(drop_outliers || clip_outliers || outliers == "raise", caller,
                    ": outliers must be 'raise', 'drop' or 'clip', got '", outliers, "'");
  TORCH_CHECK_VALUE(bins >= 2 && bins <= 256, caller, ": bins must be between 2 and 256, got ",
                    bins);
  TORCH_CHECK_VALUE(this->low.has_value() == this->high.has_value() &&
                        shared_low.has_value() == shared_high.has_value(),
                    caller, ": range must give both low and high, or neither");
  if (shared_low) shared_range.emplace(*shared_low, *shared_high);
  TORCH_CHECK_VALUE(!(this->low && shared_range), caller,
                    ": range must be given for each feature or for all, not both");
  TORCH_CHECK_VALUE(!((this->low || shared_range) && this->edges), caller,
                    ": range must be None where bins are given as edges");
}

void check_samples(const at::Tensor& x, const BinningRequest& request) {
  const auto& caller = request.caller;
  TORCH_CHECK_VALUE(x.dim() == 2, caller, ": ", request.argument,
                    " must have shape [samples, features], got ", x.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()) || x.scalar_type() == at::kByte, caller,
                   ": ", request.argument, " must be float16, bfloat16, float32 or float64, got ",
                   x.scalar_type(), "; wrap integer codes as Discretized(codes, bins)");
}

void check_edges(const at::Tensor& edges, int64_t features, const BinningRequest& request) {
  const auto& caller = request.caller;
  TORCH_CHECK_VALUE(
      edges.dim() == 1 || (edges.dim() == 2 && edges.size(0) == features), caller,
      ": bins given as edges must have shape [bins + 1] or [features, bins + 1] with features = ",
      features, ", got ", edges.sizes());
  TORCH_CHECK_VALUE(edges.size(-1) == request.bins + 1, caller, ": bins = ", request.bins,
                    " needs ", request.bins + 1, " edges, got ", edges.size(-1));
}

void check_edge_values(bool finite, bool ascend, const BinningRequest& request) {
  TORCH_CHECK_VALUE(finite, request.caller,
                    ": bins given as edges must be finite, got NaN or infinity");
  TORCH_CHECK_VALUE(ascend, request.caller,
                    ": bins given as edges must ascend, got a smaller edge after a larger one");
}

void check_bounds(const at::Tensor& low, const at::Tensor& high, int64_t features,
                  const BinningRequest& request) {
  for (const at::Tensor& bound : {low, high}) {
    TORCH_CHECK_VALUE(bound.dim() == 1 && bound.size(0) == features, request.caller,
                      ": range given as tensors must have shape [features] = [", features,
                      "], got ", bound.sizes());
  }
}

void raise_bad_range(double low, double high, int64_t feature, const at::Tensor& x,
                     const BinningRequest& request) {
  if (!request.gives_range()) raise_uncounted(x, request, {});
  const bool beyond =
      compute_dtype(x) == at::kFloat && !(std::isfinite(low) && std::isfinite(high));
  TORCH_CHECK_VALUE(false, request.caller,
                    ": range must be finite with low <= high in every feature, got (", low, ", ",
                    high, ") in feature ", feature,
                    beyond ? "; x is binned in float32, which ends at 3.4e38" : "");
}

at::Tensor bin_steps(int64_t bins, const at::TensorOptions& options) {
  // By a tensor: on CUDA torch takes a number's reciprocal times, which rounds otherwise.
  return at::arange(bins + 1, options) / at::full({}, bins, options);
}

at::Tensor edges_between(const at::Tensor& low, const at::Tensor& high, int64_t bins) {
  const auto wide = low.options().dtype(at::kDouble);
  const at::Tensor last = high.to(at::kDouble).unsqueeze(1);
  const at::Tensor step = bin_steps(bins, wide);
  const at::Tensor edges = low.to(at::kDouble).unsqueeze(1) * (1 - step) + last * step;
  at::Tensor result = std::get<0>(at::minimum(edges, last).cummax(1)).contiguous();
  result.select(1, bins).copy_(high);
  return result;
}

ResolvedBinning begin_binning(const at::Tensor& x, const BinningRequest& request) {
  check_samples(x, request);
  TORCH_CHECK_VALUE(!at::isFloatingType(x.scalar_type()) || x.size(0) > 0 || request.gives_range(),
                    request.caller, ": ", request.argument,
                    " must have at least 1 sample where range is None, got ", x.sizes());
  ResolvedBinning binning;
  binning.bins = request.bins;
  binning.clip = request.clip_outliers;
  return binning;
}

ResolvedBinning resolve_binning(const at::Tensor& x, const BinningRequest& request) {
  ResolvedBinning binning = begin_binning(x, request);
  if (!at::isFloatingType(x.scalar_type())) return binning;
  if (request.edges) {
    binning.edges = request.edges->to(x.device(), at::kDouble).contiguous();
    check_edges(binning.edges, x.size(1), request);
    check_edge_values(binning.edges.isfinite().all().item<bool>(),
                      binning.edges.diff().ge(0).all().item<bool>(), request);
    return binning;
  }
  auto [low, high] = request.low            ? std::pair(*request.low, *request.high)
                     : request.shared_range ? shared_range(x, *request.shared_range)
                                            : range_of(x, request);
  check_bounds(low, high, x.size(1), request);
  const auto dtype = compute_dtype(x);
  low = low.to(x.device(), dtype).contiguous();
  high = high.to(x.device(), dtype).contiguous();
  if (scale_on_cpu(low, high, request.bins, binning.scale)) {
    binning.low = low;
    binning.high = high;
  } else {
    check_range(low, high, x, request);
    binning.edges = edges_between(low, high, request.bins);
  }
  return binning;
}

void raise_uncounted(const at::Tensor& x, const BinningRequest& request,
                     const ResolvedBinning& binning) {
  const auto& caller = request.caller;
  if (!at::isFloatingType(x.scalar_type())) {
    const at::Tensor bad = x.ge(request.bins).logical_and_(x != kInvalidCode).any(0);
    TORCH_CHECK_VALUE(!bad.any().item<bool>(), caller,
                      ": codes must be below bins = ", request.bins,
                      " (or 255, no sample), got more in feature ", first_of(bad));
    return;
  }
  if (!request.omit_nan) {
    const at::Tensor bad = x.isnan().any(0);
    TORCH_CHECK_VALUE(!bad.any().item<bool>(), caller, ": ", request.argument,
                      " has NaN in feature ", first_of(bad),
                      "; pass nan_policy='omit' to leave such samples out");
  }
  if (request.drop_outliers || request.clip_outliers) return;
  const at::Tensor infinite = x.isinf().any(0);
  TORCH_CHECK_VALUE(!infinite.any().item<bool>(), caller, ": ", request.argument,
                    " has infinity in feature ", first_of(infinite),
                    "; pass outliers='drop' or 'clip'");
  at::Tensor low = binning.low, high = binning.high;
  if (binning.edges.defined()) {
    low = binning.edges.select(-1, 0);
    high = binning.edges.select(-1, request.bins);
  } else if (binning.shared) {
    const auto options = x.options().dtype(at::kDouble);
    low = at::scalar_tensor(binning.shared->low, options);
    high = at::scalar_tensor(binning.shared->high, options);
  }
  if (!low.defined()) return;
  low = low.expand({x.size(1)});
  high = high.expand({x.size(1)});
  const at::Tensor outside = x.lt(inward(low, x, 1)).logical_or_(x.gt(inward(high, x, -1))).any(0);
  if (!outside.any().item<bool>()) {
    TORCH_INTERNAL_ASSERT(request.omit_nan, caller, ": a sample was not counted");
    return;
  }
  const int64_t feature = first_of(outside);
  const auto bound = [&](const at::Tensor& b) { return b[feature].item<double>(); };
  const at::Tensor column = x.select(1, feature).to(at::kDouble);
  const at::Tensor values =
      column.masked_select(column.lt(bound(low)).logical_or_(column.gt(bound(high))));
  const double least = bound(low), most = bound(high), value = values[0].item<double>();
  TORCH_CHECK_VALUE(false, caller, ": ", request.argument, " must lie in range [", least, ", ",
                    most, "], got ", told_apart(value, value < least ? least : most),
                    " in feature ", feature, "; widen range, or pass outliers='drop' or 'clip'");
}

}  // namespace simmim

#include "binning_cuda.h"

#ifdef SIMMIM_WITH_CUDA

#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "backend.h"

namespace simmim {
namespace {

using Bounds = std::tuple<at::Tensor, at::Tensor>;  // low and high [features]

// Each feature's smallest and largest value, of those that may count.
Bounds range_of(const at::Tensor& x, const BinningRequest& request) {
  const bool finite = request.drop_outliers || request.clip_outliers;
  if (!finite && !request.omit_nan) return at::aminmax(x, 0);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor ignored = finite ? x.isfinite().logical_not_() : x.isnan();
  const at::Tensor low = x.masked_fill(ignored, kInfinity).amin(0);
  const at::Tensor high = x.masked_fill(ignored, -kInfinity).amax(0);
  const at::Tensor none = ignored.all(0);
  return {low.masked_fill(none, 0), high.masked_fill(none, 0)};
}

// Numbers are checked here, before anything is launched.
void resolve_shared(const at::Tensor& x, const BinningRequest& request, ResolvedBinning& binning) {
  AT_DISPATCH_FLOATING_TYPES(compute_dtype(x), "range", [&] {
    const auto low = static_cast<scalar_t>(request.shared_range->first);
    const auto high = static_cast<scalar_t>(request.shared_range->second);
    const bool good = std::isfinite(low) && std::isfinite(high) && low <= high;
    if (!good && x.size(1) > 0) raise_bad_range(low, high, 0, x, request);
    const scalar_t scale = scale_of(low, high, static_cast<int32_t>(request.bins));
    if (std::isfinite(scale)) {
      binning.shared = {low, high, scale};
    } else {
      const auto of_all = [&](scalar_t end) {
        return at::full({x.size(1)}, end, x.options().dtype(compute_dtype(x)));
      };
      binning.edges = edges_between(of_all(low), of_all(high), request.bins);
    }
  });
}

// Tensors are checked by a kernel, which makes the bins ready that they are good for.
void resolve_bounds(const at::Tensor& x, const BinningRequest& request, const at::Tensor& low,
                    const at::Tensor& high, Faults& faults, ResolvedBinning& binning) {
  const at::Tensor ready = at::empty({3, x.size(1)}, x.options().dtype(compute_dtype(x)));
  AT_DISPATCH_FLOATING_TYPES(compute_dtype(x), "range", [&] {
    const ScaleArgs<scalar_t> args{low.const_data_ptr<double>(),
                                   high.const_data_ptr<double>(),
                                   low.stride(0),
                                   high.stride(0),
                                   x.size(1),
                                   static_cast<int32_t>(request.bins),
                                   ready.mutable_data_ptr<scalar_t>()};
    on_cuda(x, [&](void* stream) {
      return scale_cuda(args, faults[kBadRange], faults[kNoScale], stream);
    });
  });
  binning.low = ready[0];
  binning.high = ready[1];
  binning.scale = ready[2];
}

void resolve_edges(const at::Tensor& x, const BinningRequest& request, Faults& faults,
                   ResolvedBinning& binning) {
  binning.edges = request.edges->to(x.device(), at::kDouble).contiguous();
  check_edges(binning.edges, x.size(1), request);
  const int64_t columns = binning.edges.size(-1), rows = binning.edges.numel() / columns;
  on_cuda(x, [&](void* stream) {
    return check_edges_cuda(binning.edges.const_data_ptr<double>(), rows, columns,
                            faults[kInfiniteEdge], faults[kDescendingEdge], stream);
  });
}

}  // namespace

std::vector<int64_t> bin_on_cuda(const at::Tensor& x, const BinningRequest& request, int64_t kinds,
                                 const std::function<void(const ResolvedBinning&, Faults&)>& work) {
  ResolvedBinning binning = begin_binning(x, request);
  Faults faults(x, kBinningFaults + kinds);
  at::Tensor low, high;
  if (!at::isFloatingType(x.scalar_type())) {  // codes
  } else if (request.edges) {
    resolve_edges(x, request, faults, binning);
  } else if (request.shared_range) {
    resolve_shared(x, request, binning);
  } else {
    std::tie(low, high) = request.low ? Bounds(*request.low, *request.high) : range_of(x, request);
    check_bounds(low, high, x.size(1), request);
    low = low.to(x.device(), at::kDouble);
    high = high.to(x.device(), at::kDouble);
    resolve_bounds(x, request, low, high, faults, binning);
  }
  work(binning, faults);
  std::vector<int64_t> found = faults.read();
  check_edge_values(found[kInfiniteEdge] < 0, found[kDescendingEdge] < 0, request);
  if (const int64_t feature = found[kBadRange]; feature >= 0) {
    const auto end = [&](const at::Tensor& bound) {
      return bound[feature].to(compute_dtype(x)).item<double>();
    };
    raise_bad_range(end(low), end(high), feature, x, request);
  }
  if (found[kNoScale] >= 0) {
    const auto dtype = compute_dtype(x);
    binning.edges = edges_between(low.to(dtype), high.to(dtype), request.bins);
    faults = Faults(x, kBinningFaults + kinds);
    work(binning, faults);
    found = faults.read();
  }
  if (found[kUncounted] >= 0) raise_uncounted(x, request, binning);
  return found;
}

}  // namespace simmim

#endif

#include "../kernels/discretize.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>

#include "backend.h"
#include "binning.h"
#include "binning_cuda.h"
#include "information.h"
#include "parallel.h"

namespace simmim {
namespace {

// Values only: codes are discrete already.
void check_values(const at::Tensor& x, const BinningRequest& request) {
  TORCH_CHECK_TYPE(
      x.scalar_type() != at::kByte, request.caller, ": ", request.argument,
      " must be float16, bfloat16, float32 or float64, got Byte; wrap integer codes as "
      "Discretized(codes, bins)");
  check_samples(x, request);
}

// The edges that a resolved binning amounts to, [features, bins + 1] float64.
at::Tensor edges_of(const ResolvedBinning& binning, int64_t features) {
  if (binning.edges.defined()) return binning.edges.expand({features, binning.bins + 1}).clone();
  const at::Tensor low = binning.low.to(at::kDouble).unsqueeze(1);
  const at::Tensor high = binning.high.to(at::kDouble).unsqueeze(1);
  const at::Tensor step = bin_steps(binning.bins, low.options());
  at::Tensor edges = low + (high - low) * step;
  edges.select(1, binning.bins).copy_(binning.high);
  return edges;
}

std::tuple<at::Tensor, at::Tensor> discretize(const at::Tensor& x, int64_t bins,
                                              const std::optional<at::Tensor>& low,
                                              const std::optional<at::Tensor>& high,
                                              const std::optional<at::Tensor>& edges,
                                              c10::string_view nan_policy,
                                              c10::string_view outliers, c10::string_view caller,
                                              c10::string_view argument) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller, argument);
  check_values(x, request);
  TORCH_CHECK_VALUE(bins <= 255 || !(request.omit_nan || request.drop_outliers), request.caller,
                    ": bins must be at most 255 where nan_policy is 'omit' or outliers is 'drop' "
                    "(code 255 marks what was left out), got ",
                    bins);
  at::Tensor codes = at::empty({x.size(1), x.size(0)}, x.options().dtype(at::kByte));
  const auto with_arguments = [&](const ResolvedBinning& binning, const auto& call) {
    SIMMIM_DISPATCH_VALUES(x, "discretize", [&] {
      call(DiscretizeArgs<Stored>{
          static_cast<const Stored*>(x.const_data_ptr()), x.size(0), x.size(1), x.stride(0),
          x.stride(1), binning.view<compute_t<Stored>>(), codes.mutable_data_ptr<uint8_t>()});
    });
  };
#ifdef SIMMIM_WITH_CUDA
  if (runs_on_cuda(x)) {
    at::Tensor used;
    bin_on_cuda(x, request, 0, [&](const ResolvedBinning& binning, Faults& faults) {
      with_arguments(binning, [&](const auto& args) {
        on_cuda(x, [&](void* stream) {
          return discretize_cuda(args, uncounted(x, request, faults), stream);
        });
      });
      used = edges_of(binning, x.size(1));
    });
    return {std::move(codes), std::move(used)};
  }
#endif
  const ResolvedBinning binning = resolve_binning(x, request);
  std::atomic<int64_t> without_bin{0};
  with_arguments(binning, [&](const auto& args) {
    MatrixParts(args.samples, args.features)
        .run([&](int64_t, int64_t feature_begin, int64_t feature_end, int64_t sample_begin,
                 int64_t sample_end) {
          without_bin += discretize_cpu(args, feature_begin, feature_end, sample_begin, sample_end);
        });
  });
  if (without_bin > 0 && must_count_all(x, request)) raise_uncounted(x, request, binning);
  return {std::move(codes), edges_of(binning, x.size(1))};
}

#ifdef SIMMIM_WITH_CUDA
// Sorts every column in memory; returns whether none has what it may not.
bool quantile_edges_on_cuda(const at::Tensor& x, const BinningRequest& request, at::Tensor& edges) {
  const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor sorted = std::get<0>(x.t().to(dtype).contiguous().sort(1));
  at::Tensor fault = at::full({}, kNoFault, x.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(dtype, "quantile_edges", [&] {
    const QuantileEdgesArgs<scalar_t> args{sorted.const_data_ptr<scalar_t>(),
                                           x.size(0),
                                           x.size(1),
                                           1,
                                           x.size(0),
                                           static_cast<int32_t>(request.bins),
                                           request.omit_nan,
                                           request.drop_outliers || request.clip_outliers,
                                           edges.mutable_data_ptr<double>()};
    on_cuda(x, [&](void* stream) {
      return sorted_quantile_edges_cuda(args, fault.mutable_data_ptr<int64_t>(), stream);
    });
  });
  return holds(fault == kNoFault);
}
#endif

at::Tensor quantile_edges(const at::Tensor& x, int64_t bins, c10::string_view nan_policy,
                          c10::string_view outliers, c10::string_view caller,
                          c10::string_view argument) {
  const BinningRequest request(bins, {}, {}, {}, nan_policy, outliers, caller, argument);
  check_values(x, request);
  TORCH_CHECK_VALUE(x.size(0) > 0, request.caller, ": ", request.argument,
                    " must have at least 1 sample for quantile bins, got ", x.sizes());
  at::Tensor edges = at::empty({x.size(1), bins + 1}, x.options().dtype(at::kDouble));
  std::atomic<bool> clean{true};
#ifdef SIMMIM_WITH_CUDA
  if (runs_on_cuda(x)) {
    if (!quantile_edges_on_cuda(x, request, edges)) raise_uncounted(x, request, {});
    return edges;
  }
#endif
  constexpr int64_t kThreadSamples = kThreadWork / 16;
  SIMMIM_DISPATCH_VALUES(x, "quantile_edges", [&] {
    const QuantileEdgesArgs<Stored> args{static_cast<const Stored*>(x.const_data_ptr()),
                                         x.size(0),
                                         x.size(1),
                                         x.stride(0),
                                         x.stride(1),
                                         static_cast<int32_t>(bins),
                                         request.omit_nan,
                                         request.drop_outliers || request.clip_outliers,
                                         edges.mutable_data_ptr<double>()};
    const int64_t threads = threads_for(args.features * args.samples / kThreadSamples);
    const int64_t share = std::min((args.features + threads - 1) / threads,
                                   kMostScratch / (threads * kQuantileScratch<Stored>));
    const int64_t range = std::clamp<int64_t>(share, 1, kQuantileFeatures);
    parallel_tasks((args.features + range - 1) / range,
                   [&](int64_t i) {
                     const int64_t begin = i * range, end = std::min(begin + range, args.features);
                     if (!quantile_edges_cpu(args, begin, end)) clean = false;
                   },
                   range * kQuantileScratch<Stored>);
  });
  if (!clean) raise_uncounted(x, request, {});
  return edges;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def(
      "discretize(Tensor x, int bins, Tensor? low, Tensor? high, Tensor? edges, str nan_policy, "
      "str outliers, str caller, str argument) -> (Tensor codes, Tensor edges)");
  m.def(
      "quantile_edges(Tensor x, int bins, str nan_policy, str outliers, str caller, str argument) "
      "-> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("discretize", &simmim::discretize);
  m.impl("quantile_edges", &simmim::quantile_edges);
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("discretize", SIMMIM_ON_CUDA(discretize));
  m.impl("quantile_edges", SIMMIM_ON_CUDA(quantile_edges));
}

// entropy, marginal_entropy and predictive_information on CUDA.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../kernels/predictive.h"
#include "backend.h"
#include "binning_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

// Launches the entropies of a table of counts [features, bins].
void launch_entropy(const at::Tensor& table, Estimator estimator, double nats_per_unit,
                    at::Tensor& result, int64_t* first_fault) {
  const int64_t bins = table.size(-1);
  const EntropyArgs args{
      table.const_data_ptr<int64_t>(), table.numel() / bins, bins, estimator, nats_per_unit,
      result.mutable_data_ptr<float>()};
  on_cuda(table, [&](void* stream) { return entropy_cuda(args, first_fault, stream); });
}

// Raises where a feature, the first whose counts are wrong or add up to fewer than 2, is not -1.
void check_feature(int64_t feature, const at::Tensor& table, const std::string& caller) {
  if (feature < 0) return;
  const at::Tensor counts = table.view({-1, table.size(-1)})[feature].cpu();
  check_count_values(counts.const_data_ptr<int64_t>(), 1, counts.numel(), caller);
  check_valid(counts.sum().item<int64_t>(), feature, caller, "x");
}

at::Tensor entropy_on_cuda(const at::Tensor& counts, c10::string_view estimator,
                           std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_counts(counts, caller);
  const at::Tensor table = counts.contiguous();
  at::Tensor result =
      at::empty(counts.sizes().slice(0, counts.dim() - 1), counts.options().dtype(at::kFloat));
  Faults faults(table, 1);
  launch_entropy(table, parse_estimator(estimator, caller), nats_per_unit(base, caller), result,
                 faults[0]);
  check_feature(faults.read()[0], table, caller);
  return result;
}

at::Tensor marginal_entropy_on_cuda(const at::Tensor& x, int64_t bins,
                                    const std::optional<at::Tensor>& low,
                                    const std::optional<at::Tensor>& high,
                                    const std::optional<at::Tensor>& edges,
                                    std::optional<double> shared_low,
                                    std::optional<double> shared_high, c10::string_view nan_policy,
                                    c10::string_view outliers, c10::string_view estimator_name,
                                    std::optional<double> base, c10::string_view caller) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller, "x",
                               shared_low, shared_high);
  const Estimator estimator = parse_estimator(estimator_name, request.caller);
  const double unit = nats_per_unit(base, request.caller);
  at::Tensor counts, result;
  const auto faults =
      bin_on_cuda(x, request, 1, [&](const ResolvedBinning& binning, Faults& faults) {
        counts = count_on_cuda(x, request, binning, faults);
        result = at::empty({x.size(1)}, x.options().dtype(at::kFloat));
        launch_entropy(counts, estimator, unit, result, faults[kBinningFaults]);
      });
  check_feature(faults[kBinningFaults], counts, request.caller);
  return result;
}

at::Tensor predictive_information_on_cuda(const at::Tensor& logits, std::optional<double> base,
                                          c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_logits(logits, caller);
  const double unit = nats_per_unit(base, caller);
  const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = logits.to(dtype).contiguous();
  const int64_t samples = wide.size(0), classes = wide.size(1);
  at::Tensor result = at::empty({}, logits.options().dtype(at::kFloat));
  const at::Tensor scratch =
      at::empty({predictive_scratch_cuda(samples, classes)}, logits.options().dtype(at::kDouble));
  Faults faults(wide, 1);
  AT_DISPATCH_FLOATING_TYPES(dtype, "predictive_information", [&] {
    const PredictiveInformationArgs<scalar_t> args{wide.const_data_ptr<scalar_t>(), samples,
                                                   classes};
    on_cuda(wide, [&](void* stream) {
      return predictive_information_cuda(args, unit, scratch.mutable_data_ptr<double>(),
                                         result.mutable_data_ptr<float>(), faults[0], stream);
    });
  });
  check_sample_is_finite(faults.read()[0], caller);
  return result;
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("entropy", SIMMIM_ON_CUDA(entropy_on_cuda));
  m.impl("marginal_entropy", SIMMIM_ON_CUDA(marginal_entropy_on_cuda));
  m.impl("predictive_information", SIMMIM_ON_CUDA(predictive_information_on_cuda));
}

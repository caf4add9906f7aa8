// Joint counts and pairwise information on CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../kernels/joint.h"
#include "backend.h"
#include "information_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

at::Tensor joint_histogram_on_cuda(const at::Tensor& x, const at::Tensor& y, int64_t x_bins,
                                   int64_t y_bins, c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_same_device(x, y, caller, "y");
  check_codes(x, x_bins, caller, "x");
  check_codes(y, y_bins, caller, "y");
  check_same_samples(x.size(1), y.size(1), caller, "y");
  check_few_samples(x.size(1), caller);
  const at::Tensor x_codes = x.contiguous(), y_codes = y.contiguous();
  at::Tensor counts =
      at::empty({x.size(0), y.size(0), x_bins, y_bins}, x.options().dtype(at::kLong));
  const JointHistogramArgs args{code_pair(x_codes, y_codes, x_bins, y_bins),
                                counts.mutable_data_ptr<int64_t>()};
  Faults faults(x_codes, 2);
  report_bad_codes(x_codes, x_bins, faults, 0);
  report_bad_codes(y_codes, y_bins, faults, 1);
  on_cuda(x_codes, [&](void* stream) { return joint_histogram_cuda(args, stream); });
  const std::vector<int64_t> found = faults.read();
  check_bad_codes(found, 0, x_codes, x_bins, caller, "x");
  check_bad_codes(found, 1, y_codes, y_bins, caller, "y");
  return counts;
}

at::Tensor pairwise_information_on_cuda(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                        int64_t x_bins, std::optional<int64_t> y_bins,
                                        c10::string_view quantity, c10::string_view estimator,
                                        std::optional<c10::string_view> normalized,
                                        std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  if (y) check_same_device(x, *y, caller, "y");
  check_codes(x, x_bins, caller, "x");
  check_few_samples(x.size(1), caller);
  enum { kX = 0, kY = 2, kPair = 4, kKinds };
  Faults faults(x, kKinds);
  const DeviceTerms terms = device_terms(parse_estimator(estimator, caller), x.size(1), x);
  const DeviceCodes x_codes(x, x_bins, terms.terms, faults, kX, caller, "x");
  std::optional<DeviceCodes> y_only;
  if (y) {
    TORCH_CHECK_VALUE(y_bins, caller, ": y_bins must be given where y is codes");
    y_only.emplace(*y, *y_bins, terms.terms, faults, kY, caller, "y");
    check_same_samples(x.size(1), y->size(1), caller, "y");
  }
  const DeviceCodes& y_codes = y ? *y_only : x_codes;
  at::Tensor result =
      at::empty({x_codes.codes.size(0), y_codes.codes.size(0)}, x.options().dtype(at::kFloat));
  const PairwiseInformationArgs args{
      code_pair(x_codes.codes, y_codes.codes, x_codes.bins, y_codes.bins),
      !y.has_value(),
      x_codes.valid.const_data_ptr<int64_t>(),
      y_codes.valid.const_data_ptr<int64_t>(),
      x_codes.entropy.const_data_ptr<double>(),
      y_codes.entropy.const_data_ptr<double>(),
      terms.terms,
      parse_information(quantity, terms.terms.estimator, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  at::Tensor scratch;
  on_cuda(x, [&](void* stream) {
    scratch = at::empty({pairwise_scratch_words(args)}, x.options().dtype(at::kInt));
    return pairwise_information_cuda(args, static_cast<uint32_t*>(scratch.mutable_data_ptr()),
                                     faults[kPair], stream);
  });
  const std::vector<int64_t> found = faults.read();
  x_codes.check(found, kX, caller);
  if (y) y_codes.check(found, kY, caller);
  check_shared_samples(found[kPair], args.codes.y_features, caller);
  return result;
}

at::Tensor joint_information_on_cuda(const at::Tensor& counts, c10::string_view quantity,
                                     c10::string_view estimator,
                                     std::optional<c10::string_view> normalized,
                                     std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_joint_counts(counts, caller);
  const Estimator kind = parse_estimator(estimator, caller);
  const at::Tensor table = counts.contiguous();
  at::Tensor result =
      at::empty({counts.size(0), counts.size(1)}, counts.options().dtype(at::kFloat));
  const JointInformationArgs args{table.const_data_ptr<int64_t>(),
                                  counts.size(0) * counts.size(1),
                                  static_cast<int32_t>(counts.size(2)),
                                  static_cast<int32_t>(counts.size(3)),
                                  kind,
                                  parse_information(quantity, kind, normalized, base, caller),
                                  result.mutable_data_ptr<float>()};
  Faults faults(table, 1);
  on_cuda(table, [&](void* stream) { return joint_information_cuda(args, faults[0], stream); });
  const int64_t pair = faults.read()[0];
  if (pair >= 0) {
    const at::Tensor own = table.flatten(0, 1)[pair].cpu();
    check_count_values(own.const_data_ptr<int64_t>(), 1, own.numel(), caller);
  }
  check_shared_samples(pair, counts.size(1), caller);
  return result;
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("joint_histogram", SIMMIM_ON_CUDA(joint_histogram_on_cuda));
  m.impl("pairwise_information", SIMMIM_ON_CUDA(pairwise_information_on_cuda));
  m.impl("joint_information", SIMMIM_ON_CUDA(joint_information_on_cuda));
}

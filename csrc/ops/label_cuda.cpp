// Information about hard and soft labels on CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../kernels/label.h"
#include "backend.h"
#include "binning.h"
#include "information_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

using Discretize = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t,
                                                      const std::optional<at::Tensor>&,
                                                      const std::optional<at::Tensor>&,
                                                      const std::optional<at::Tensor>&,
                                                      c10::string_view, c10::string_view,
                                                      c10::string_view, c10::string_view);

// Waits for the device once, and where x is values as often as discretize does.
at::Tensor label_information_on_cuda(const at::Tensor& x, const at::Tensor& labels, int64_t bins,
                                     const std::optional<at::Tensor>& low,
                                     const std::optional<at::Tensor>& high,
                                     const std::optional<at::Tensor>& edges,
                                     c10::string_view nan_policy, c10::string_view outliers,
                                     c10::string_view quantity, c10::string_view estimator,
                                     std::optional<c10::string_view> normalized,
                                     std::optional<double> base, c10::string_view caller_view) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller_view);
  const std::string& caller = request.caller;
  check_same_device(x, labels, caller, "y");
  check_samples(x, request);
  check_few_samples(x.size(0), caller);
  at::Tensor given = x.t();
  if (at::isFloatingType(x.scalar_type())) {
    given = std::get<0>(dispatched<Discretize>("simmim_ext::discretize")
                            .call(x, bins, low, high, edges, nan_policy, outliers, caller, "x"));
  }
  const int64_t features = given.size(0), samples = given.size(1);
  enum { kX = 0, kLabels = 2, kKinds = 4 };
  Faults faults(x, kKinds);
  const DeviceTerms terms = device_terms(parse_estimator(estimator, caller), samples, x);
  const DeviceCodes codes(given, bins, terms.terms, faults, kX, caller, "x");
  const DeviceLabels classes(labels, samples, faults, kLabels, caller, "y");
  const std::vector<int64_t> found = faults.read();  // before counting: how many classes there are
  codes.check(found, kX, caller);
  classes.check(found, kLabels, labels, caller, "y");
  at::Tensor result = at::empty({features}, x.options().dtype(at::kFloat));
  const LabelTableArgs args{
      codes.codes.const_data_ptr<uint8_t>(),
      classes.labels.const_data_ptr<int32_t>(),
      classes.classes.const_data_ptr<int64_t>(),
      classes.alphabet.const_data_ptr<double>(),
      most_classes(found, kLabels),
      features,
      samples,
      static_cast<int32_t>(bins),
      terms.terms,
      parse_information(quantity, terms.terms.estimator, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  on_cuda(x, [&](void* stream) { return label_information_cuda(args, stream); });
  return result;
}

// Waits for the device twice: the probabilities are checked apart.
at::Tensor soft_label_information_on_cuda(const at::Tensor& x, const at::Tensor& probabilities,
                                          int64_t bins, std::optional<c10::string_view> normalized,
                                          std::optional<double> base,
                                          c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_same_device(x, probabilities, caller, "probabilities");
  check_codes(x, bins, caller, "x");
  Faults faults(x, 2);
  const DeviceTerms terms = device_terms(Estimator::plugin, x.size(1), x);
  const DeviceCodes codes(x, bins, terms.terms, faults, 0, caller, "x");
  codes.check(faults.read(), 0, caller);
  const at::Tensor p = checked_probabilities(probabilities, x.size(1), caller);
  at::Tensor valid = codes.valid;
  if (is_capturing(p)) valid = valid.mul(p.select(1, 0).isfinite().all());  // bad p: NaN
  at::Tensor result = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const SoftLabelInformationArgs args{
      codes.codes.const_data_ptr<uint8_t>(),
      p.const_data_ptr<double>(),
      x.size(0),
      x.size(1),
      p.size(1),
      static_cast<int32_t>(bins),
      terms.terms,
      parse_information("mutual_information", Estimator::plugin, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  const at::Tensor scratch = at::empty({soft_label_scratch(args)}, x.options().dtype(at::kByte));
  on_cuda(x, [&](void* stream) {
    return soft_label_information_cuda(args, valid.const_data_ptr<int64_t>(),
                                       codes.entropy.const_data_ptr<double>(),
                                       scratch.mutable_data_ptr(), stream);
  });
  return result;
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("label_information", SIMMIM_ON_CUDA(label_information_on_cuda));
  m.impl("soft_label_information", SIMMIM_ON_CUDA(soft_label_information_on_cuda));
}

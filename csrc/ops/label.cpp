#include "../kernels/label.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "backend.h"
#include "information.h"

namespace simmim {

at::Tensor checked_probabilities(const at::Tensor& probabilities, int64_t samples,
                                 const std::string& caller) {
  TORCH_CHECK_TYPE(at::isFloatingType(probabilities.scalar_type()), caller,
                   ": probabilities must be float16, bfloat16, float32 or float64, got ",
                   probabilities.scalar_type());
  TORCH_CHECK_VALUE(probabilities.dim() == 2 && probabilities.size(1) >= 1, caller,
                    ": probabilities must have shape [samples, classes], got ",
                    probabilities.sizes());
  check_same_samples(samples, probabilities.size(0), caller, "probabilities");
  const bool half =
      probabilities.scalar_type() == at::kHalf || probabilities.scalar_type() == at::kBFloat16;
  const double tolerance = half ? 1e-2 : 1e-3;
  const at::Tensor wide = probabilities.to(at::kDouble);
  const at::Tensor sums = wide.sum(1, /*keepdim=*/true);
  const at::Tensor good = wide.ge(0).all(1).logical_and_((sums.squeeze(1) - 1).abs().le(tolerance));
  if (!holds(good.all())) {
    const int64_t sample = good.logical_not().nonzero()[0][0].item<int64_t>();
    TORCH_CHECK_VALUE(false, caller,
                      ": probabilities must be at least 0 and sum to 1 in every sample, got sum ",
                      sums[sample].item<double>(), " and smallest ",
                      wide[sample].min().item<double>(), " in sample ", sample);
  }
  return wide.div(sums).contiguous();
}

namespace {

at::Tensor label_information(const at::Tensor& x, const at::Tensor& labels, int64_t bins,
                             c10::string_view quantity, c10::string_view estimator,
                             std::optional<c10::string_view> normalized, std::optional<double> base,
                             c10::string_view caller_view) {
  const std::string caller(caller_view);
  const std::vector<int64_t> counts = count_codes(x, bins, caller, "x");
  valid_samples(counts.data(), x.size(0), bins, caller, "x");
  const LabelGroups groups = group_by_label(labels, x.size(1), caller, "y");
  const at::Tensor codes = x.contiguous();
  EntropyTerms terms = entropy_terms(parse_estimator(estimator, caller), x.size(1));
  const std::vector<int64_t> table = tabulate(terms, x.size(1));
  at::Tensor result = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const LabelInformationArgs args{
      codes.const_data_ptr<uint8_t>(),
      groups.order.data(),
      groups.begin.data(),
      x.size(0),
      x.size(1),
      static_cast<int64_t>(groups.begin.size()) - 1,
      static_cast<int32_t>(bins),
      static_cast<double>(groups.classes),
      terms,
      parse_information(quantity, terms.estimator, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  for_each_feature_range(args.features, args.samples, [&](int64_t begin, int64_t end) {
    label_information_cpu(args, begin, end);
  });
  return result;
}

at::Tensor soft_label_information(const at::Tensor& x, const at::Tensor& probabilities,
                                  int64_t bins, std::optional<c10::string_view> normalized,
                                  std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  const std::vector<int64_t> counts = count_codes(x, bins, caller, "x");
  valid_samples(counts.data(), x.size(0), bins, caller, "x");
  const at::Tensor p = checked_probabilities(probabilities, x.size(1), caller);
  const at::Tensor codes = x.contiguous();
  at::Tensor result = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const SoftLabelInformationArgs args{
      codes.const_data_ptr<uint8_t>(),
      p.const_data_ptr<double>(),
      x.size(0),
      x.size(1),
      p.size(1),
      static_cast<int32_t>(bins),
      entropy_terms(Estimator::plugin, x.size(1)),
      parse_information("mutual_information", Estimator::plugin, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  for_each_feature_range(
      args.features, args.samples * args.classes,
      [&](int64_t begin, int64_t end) { soft_label_information_cpu(args, begin, end); });
  return result;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def(
      "label_information(Tensor x, Tensor labels, int bins, str quantity, str estimator, "
      "str? normalized, float? base, str caller) -> Tensor");
  m.def(
      "soft_label_information(Tensor x, Tensor probabilities, int bins, str? normalized, "
      "float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("label_information", &simmim::label_information);
  m.impl("soft_label_information", &simmim::soft_label_information);
}

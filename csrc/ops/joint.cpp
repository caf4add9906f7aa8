#include "../kernels/joint.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "backend.h"
#include "information.h"

namespace simmim {

void check_joint_counts(const at::Tensor& counts, const std::string& caller) {
  TORCH_CHECK_TYPE(counts.scalar_type() == at::kLong, caller, ": counts must be int64, got ",
                   counts.scalar_type());
  TORCH_CHECK_VALUE(counts.dim() == 4, caller,
                    ": counts must have shape [x_features, y_features, x_bins, y_bins], got ",
                    counts.sizes());
  for (const int64_t axis : {2, 3}) {
    TORCH_CHECK_VALUE(counts.size(axis) >= 1 && counts.size(axis) <= 256, caller,
                      ": counts must have between 1 and 256 bins, got ", counts.sizes());
  }
}

namespace {

at::Tensor joint_histogram(const at::Tensor& x, const at::Tensor& y, int64_t x_bins, int64_t y_bins,
                           c10::string_view caller_view) {
  const std::string caller(caller_view);
  count_codes(x, x_bins, caller, "x");
  count_codes(y, y_bins, caller, "y");
  check_same_samples(x.size(1), y.size(1), caller, "y");
  const at::Tensor x_codes = x.contiguous(), y_codes = y.contiguous();
  at::Tensor counts =
      at::empty({x.size(0), y.size(0), x_bins, y_bins}, x.options().dtype(at::kLong));
  if (x.size(1) == 0) return counts.zero_();
  const JointHistogramArgs args{code_pair(x_codes, y_codes, x_bins, y_bins),
                                counts.mutable_data_ptr<int64_t>()};
  for_each_pair_block(args.codes, /*symmetric=*/false, /*groups=*/1,
                      [&](const PairBlock& block) { joint_histogram_cpu(args, block); });
  return counts;
}

at::Tensor pairwise_information(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                int64_t x_bins, std::optional<int64_t> y_bins,
                                c10::string_view quantity, c10::string_view estimator,
                                std::optional<c10::string_view> normalized,
                                std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  TORCH_CHECK_VALUE(x.dim() == 2, caller, ": codes of x must have shape [features, samples], got ",
                    x.sizes());
  const at::Tensor x_codes = x.contiguous(), y_codes = y ? y->contiguous() : x_codes;
  EntropyTerms terms = entropy_terms(parse_estimator(estimator, caller), x.size(1));
  const std::vector<int64_t> table = tabulate(terms, x.size(1));
  const CodeMarginals x_marginals = marginals_of(x_codes, x_bins, terms, caller, "x");
  CodeMarginals y_only;
  if (y) {
    TORCH_CHECK_VALUE(y_bins, caller, ": y_bins must be given where y is codes");
    y_only = marginals_of(y_codes, *y_bins, terms, caller, "y");
    check_same_samples(x.size(1), y->size(1), caller, "y");
  }
  const CodeMarginals& y_marginals = y ? y_only : x_marginals;
  at::Tensor result = at::empty({x_codes.size(0), y_codes.size(0)}, x.options().dtype(at::kFloat));

  const PairwiseInformationArgs args{
      code_pair(x_codes, y_codes, x_bins, y ? *y_bins : x_bins),
      !y.has_value(),
      x_marginals.valid.data(),
      y_marginals.valid.data(),
      x_marginals.entropy.data(),
      y_marginals.entropy.data(),
      terms,
      parse_information(quantity, terms.estimator, normalized, base, caller),
      result.mutable_data_ptr<float>()};
  FirstIndex too_few;
  for_each_pair_block(args.codes, args.symmetric, /*groups=*/1, [&](const PairBlock& block) {
    too_few.report(pairwise_information_cpu(args, block));
  });
  check_shared_samples(too_few.get(), args.codes.y_features, caller);
  return result;
}

at::Tensor joint_information(const at::Tensor& counts, c10::string_view quantity,
                             c10::string_view estimator, std::optional<c10::string_view> normalized,
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
  FirstIndex too_few;
  const int64_t cells = counts.size(2) * counts.size(3);
  for_each_feature_range(args.pairs, cells, [&](int64_t begin, int64_t end) {
    check_count_values(args.counts + begin * cells, end - begin, cells, caller);
    too_few.report(joint_information_cpu(args, begin, end));
  });
  check_shared_samples(too_few.get(), counts.size(1), caller);
  return result;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("joint_histogram(Tensor x, Tensor y, int x_bins, int y_bins, str caller) -> Tensor");
  m.def(
      "pairwise_information(Tensor x, Tensor? y, int x_bins, int? y_bins, str quantity, "
      "str estimator, str? normalized, float? base, str caller) -> Tensor");
  m.def(
      "joint_information(Tensor counts, str quantity, str estimator, str? normalized, "
      "float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("joint_histogram", &simmim::joint_histogram);
  m.impl("pairwise_information", &simmim::pairwise_information);
  m.impl("joint_information", &simmim::joint_information);
}

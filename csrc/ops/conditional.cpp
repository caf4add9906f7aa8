#include "../kernels/conditional.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "../kernels/label.h"
#include "backend.h"
#include "information.h"

namespace simmim {
namespace {

// z as class labels, of the samples that have one: integers as they are; codes of one binned
// feature without those that are no bin.
struct Condition {
  LabelGroups groups;
  double alphabet;
};

Condition parse_condition(const at::Tensor& z, std::optional<int64_t> z_bins, int64_t samples,
                          const std::string& caller) {
  Condition condition;
  if (!z_bins) {
    condition.groups = group_by_label(z, samples, caller, "z");
    condition.alphabet = static_cast<double>(condition.groups.classes);
    return condition;
  }
  const std::vector<int64_t> counts = count_codes(z, *z_bins, caller, "z");
  TORCH_CHECK_VALUE(z.size(0) == 1, caller, ": z must be one feature [samples, 1], got ", z.size(0),
                    " features");
  valid_samples(counts.data(), 1, *z_bins, caller, "z");
  LabelGroups& groups = condition.groups;
  groups = group_by_label(z[0], samples, caller, "z");
  condition.alphabet = static_cast<double>(*z_bins);
  if (*z_bins < 256 && groups.classes == 256) {  // the last group is that of kInvalidCode
    groups.begin.pop_back();
    groups.order.resize(groups.begin.back());
  }
  return condition;
}

at::Tensor sort_samples(const at::Tensor& codes, const LabelGroups& groups) {
  const auto size = static_cast<int64_t>(groups.order.size());
  at::Tensor index = at::empty({size}, codes.options().dtype(at::kLong));
  std::copy(groups.order.begin(), groups.order.end(), index.mutable_data_ptr<int64_t>());
  return codes.index_select(1, index).contiguous();
}

std::vector<double> grouped_entropies(const at::Tensor& codes, int64_t bins,
                                      const Condition& condition, const EntropyTerms& terms) {
  std::vector<double> entropy(codes.size(0));
  const GroupedEntropyArgs args{
      codes.const_data_ptr<uint8_t>(), condition.groups.view(), codes.size(0), codes.size(1),
      static_cast<int32_t>(bins),      condition.alphabet,      terms,         entropy.data()};
  for_each_feature_range(args.features, args.samples, [&](int64_t begin, int64_t end) {
    grouped_entropy_cpu(args, begin, end);
  });
  return entropy;
}

at::Tensor pairs_given(const at::Tensor& x, const std::optional<at::Tensor>& y, int64_t x_bins,
                       int64_t y_bins, const Condition& condition, EntropyTerms terms, double unit,
                       const std::string& caller) {
  const std::vector<int64_t>& begin = condition.groups.begin;
  const at::Tensor x_codes = sort_samples(x, condition.groups);
  const at::Tensor y_codes = y ? sort_samples(*y, condition.groups) : x_codes;
  const CodeMarginals x_marginals = marginals_of(x_codes, x_bins, terms, caller, "x");
  const CodeMarginals y_marginals =
      y ? marginals_of(y_codes, y_bins, terms, caller, "y") : x_marginals;
  at::Tensor result = at::empty({x_codes.size(0), y_codes.size(0)}, x.options().dtype(at::kFloat));
  if (result.numel() == 0) return result;  // no pair needs H(Z), which may be of no sample
  const std::vector<double> xz = grouped_entropies(x_codes, x_bins, condition, terms);
  const std::vector<double> yz = y ? grouped_entropies(y_codes, y_bins, condition, terms) : xz;
  const double z_entropy =
      entropy_of_cells(terms, begin.back(), condition.alphabet, [&](auto&& visit) {
        for (size_t group = 0; group + 1 < begin.size(); ++group) {
          visit(begin[group + 1] - begin[group]);
        }
      });
  const ConditionalInformationArgs args{code_pair(x_codes, y_codes, x_bins, y_bins),
                                        condition.groups.view(),
                                        condition.alphabet,
                                        !y.has_value(),
                                        x_marginals.valid.data(),
                                        y_marginals.valid.data(),
                                        xz.data(),
                                        yz.data(),
                                        z_entropy,
                                        terms,
                                        unit,
                                        result.mutable_data_ptr<float>()};
  FirstIndex too_few;
  for_each_pair_block(args.codes, args.symmetric, args.groups.count, [&](const PairBlock& block) {
    too_few.report(conditional_information_cpu(args, block));
  });
  check_shared_samples(too_few.get(), args.codes.y_features, caller);
  return result;
}

std::vector<float> label_conditional_entropy(const at::Tensor& x, int64_t bins,
                                             const LabelGroups& groups, const EntropyTerms& terms,
                                             double unit) {
  std::vector<float> result(x.size(0));
  const SortedLabelInformationArgs args{x.const_data_ptr<uint8_t>(),
                                        groups.order.data(),
                                        groups.view(),
                                        x.size(0),
                                        x.size(1),
                                        static_cast<int32_t>(bins),
                                        static_cast<double>(groups.classes),
                                        terms,
                                        {Quantity::conditional_entropy, Normalization::none,
                                         terms.estimator == Estimator::plugin, unit},
                                        result.data()};
  for_each_feature_range(args.features, args.samples, [&](int64_t begin, int64_t end) {
    sorted_label_information_cpu(args, begin, end);
  });
  return result;
}

// I(X;Y|Z) = H(X|Z) - H(X|Y,Z) with class labels y: two conditions, no pairs.
at::Tensor labels_given(const at::Tensor& x, const at::Tensor& y, int64_t bins,
                        const Condition& condition, const EntropyTerms& terms, double unit,
                        const std::string& caller) {
  const at::Tensor codes = sort_samples(x, condition.groups);
  const std::vector<int64_t> counts = count_codes(codes, bins, caller, "x");
  valid_samples(counts.data(), codes.size(0), bins, caller, "x");
  const at::Tensor labels = sort_samples(y.unsqueeze(0), condition.groups)[0];
  const int64_t samples = codes.size(1);

  LabelGroups by_z;
  by_z.order.resize(samples);
  std::iota(by_z.order.begin(), by_z.order.end(), 0u);
  by_z.begin = condition.groups.begin;
  by_z.classes = static_cast<int64_t>(condition.alphabet);
  std::vector<uint32_t> z_group(samples);
  for (size_t group = 0; group + 1 < by_z.begin.size(); ++group) {
    std::fill(z_group.begin() + by_z.begin[group], z_group.begin() + by_z.begin[group + 1],
              static_cast<uint32_t>(group));
  }

  // Sorting by y is stable, hence by (y, z): a group ends where either changes.
  LabelGroups by_yz = group_by_label(labels, samples, caller, "y");
  std::vector<int64_t> begin;
  size_t next_y = 0;
  for (int64_t i = 0; i < samples; ++i) {
    const bool new_y = i == by_yz.begin[next_y];
    next_y += new_y;
    if (new_y || z_group[by_yz.order[i]] != z_group[by_yz.order[i - 1]]) begin.push_back(i);
  }
  begin.push_back(samples);
  by_yz.begin = std::move(begin);
  by_yz.classes *= by_z.classes;

  const std::vector<float> given_z = label_conditional_entropy(codes, bins, by_z, terms, unit);
  const std::vector<float> given_yz = label_conditional_entropy(codes, bins, by_yz, terms, unit);
  at::Tensor result = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  float* out = result.mutable_data_ptr<float>();
  for (int64_t f = 0; f < x.size(0); ++f) {
    const float value = given_z[f] - given_yz[f];
    out[f] = terms.estimator == Estimator::plugin ? std::max(value, 0.0f) : value;
  }
  return result;
}

at::Tensor conditional_mutual_information(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                          const at::Tensor& z, int64_t x_bins,
                                          std::optional<int64_t> y_bins,
                                          std::optional<int64_t> z_bins, c10::string_view estimator,
                                          std::optional<double> base,
                                          c10::string_view caller_view) {
  const std::string caller(caller_view);
  count_codes(x, x_bins, caller, "x");
  const bool y_labels = y && y->dim() == 1;
  if (y) {
    TORCH_CHECK_VALUE(y_labels || y_bins, caller, ": y_bins must be given where y is codes");
    if (!y_labels) count_codes(*y, *y_bins, caller, "y");
    check_same_samples(x.size(1), y->size(-1), caller, "y");
  }
  const double unit = nats_per_unit(base, caller);
  EntropyTerms terms = entropy_terms(parse_estimator(estimator, caller), x.size(1));
  const std::vector<int64_t> table = tabulate(terms, x.size(1));
  const Condition condition = parse_condition(z, z_bins, x.size(1), caller);
  if (y_labels) return labels_given(x, *y, x_bins, condition, terms, unit, caller);
  return pairs_given(x, y, x_bins, y ? *y_bins : x_bins, condition, terms, unit, caller);
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def(
      "conditional_mutual_information(Tensor x, Tensor? y, Tensor z, int x_bins, int? y_bins, "
      "int? z_bins, str estimator, float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("conditional_mutual_information", &simmim::conditional_mutual_information);
}

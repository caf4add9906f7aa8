#include "../kernels/label.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../kernels/histogram.h"
#include "backend.h"
#include "binning.h"
#include "information.h"
#include "interrupt.h"
#include "parallel.h"

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
  at::Tensor sums = wide.sum(1, /*keepdim=*/true);
  const at::Tensor good = wide.ge(0).all(1).logical_and_((sums.squeeze(1) - 1).abs().le(tolerance));
  if (!holds(good.all())) {
    const int64_t sample = good.logical_not().nonzero()[0][0].item<int64_t>();
    TORCH_CHECK_VALUE(false, caller,
                      ": probabilities must be at least 0 and sum to 1 in every sample, got sum ",
                      sums[sample].item<double>(), " and smallest ",
                      wide[sample].min().item<double>(), " in sample ", sample);
  }
  if (is_capturing(wide)) sums = sums.masked_fill(good.logical_not().unsqueeze(1), NAN);
  return wide.div(sums).contiguous();
}

namespace {

using Discretize = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t,
                                                      const std::optional<at::Tensor>&,
                                                      const std::optional<at::Tensor>&,
                                                      const std::optional<at::Tensor>&,
                                                      c10::string_view, c10::string_view,
                                                      c10::string_view, c10::string_view);

constexpr int64_t kCounts = int64_t{1} << 21;  // kept at a time: 16 MiB
constexpr int64_t kNarrowest = 64;             // features whose counts are kept, whatever they take

// Counts of every label apart pay while they are few, and while to read them out of a histogram
// costs little beside counting.
bool keep_counts(int64_t groups, int64_t samples, int64_t bins) {
  return groups * bins <= 32768 && 2 * groups * bins <= samples;
}

// The histogram of each label's rows, features [first, first + features) at a time: values are read
// once, row by row, and binned as they are counted.
template <typename Stored>
void count_by_label(const HistogramArgs<Stored>& x, const std::vector<int64_t>& group_begin,
                    int64_t first, int64_t features, std::vector<int64_t>& counts) {
  constexpr int64_t kPart = int64_t{1} << 27;  // elements between two looks at the caller
  constexpr int64_t kRow = 512;                // features of a task
  const auto groups = static_cast<int64_t>(group_begin.size()) - 1;
  const int64_t blocks = threads_for(2) == 1 ? 1 : (features + kRow - 1) / kRow;
  const int64_t parts = x.samples * features / kPart + 1;
  std::fill(counts.begin(), counts.end(), 0);
  for (int64_t part = 0; part < parts; ++part) {
    parallel_tasks(groups * blocks, [&](int64_t task) {
      const int64_t group = task / blocks, block = task % blocks;
      const int64_t begin = group_begin[group], size = group_begin[group + 1] - begin;
      HistogramArgs<Stored> own = x;
      own.counts = counts.data() + (group * features - first) * x.binning.bins;
      histogram_cpu(own, first + features * block / blocks, first + features * (block + 1) / blocks,
                    begin + size * part / parts, begin + size * (part + 1) / parts);
    });
    check_interrupt();
  }
}

at::Tensor information_of_values(const at::Tensor& x, const BinningRequest& request,
                                 const ResolvedBinning& binning, const LabelGroups& groups,
                                 LabelInformationArgs args) {
  at::Tensor result = at::empty({x.size(1)}, x.options().dtype(at::kFloat));
  const int64_t cells = std::max<int64_t>(args.groups, 1) * args.bins;  // no samples, no groups
  const int64_t width = std::min(x.size(1), std::max(kNarrowest, kCounts / cells));
  std::vector<int64_t> counts, marginals;
  for (int64_t first = 0; first < x.size(1); first += width) {
    const int64_t features = std::min(width, x.size(1) - first);
    counts.resize(features * cells);
    SIMMIM_DISPATCH_VALUES(x, "label_information", [&] {
      HistogramArgs<Stored> values{static_cast<const Stored*>(x.const_data_ptr()),
                                   x.size(0),
                                   x.size(1),
                                   x.stride(0),
                                   x.stride(1),
                                   binning.view<compute_t<Stored>>(),
                                   nullptr,
                                   groups.order.data()};
      count_by_label(values, groups.begin, first, features, counts);
    });
    marginals.assign(features * args.bins, 0);
    for (size_t i = 0; i < counts.size(); ++i) marginals[i % marginals.size()] += counts[i];
    if (must_count_all(x, request) &&
        std::accumulate(counts.begin(), counts.end(), int64_t{0}) < x.size(0) * features) {
      raise_uncounted(x, request, binning);
    }
    valid_samples(marginals.data(), features, args.bins, request.caller, "x", first);
    args.counts = counts.data();
    args.feature_stride = args.bins;
    args.group_stride = features * args.bins;
    args.result = result.mutable_data_ptr<float>() + first;
    for_each_feature_range(features, cells, [&](int64_t begin, int64_t end) {
      label_information_cpu(args, begin, end);
    });
  }
  return result;
}

// Codes [features, samples] are counted jointly with the labels' groups, which are codes too while
// they are few enough; else in the order of their labels.
at::Tensor information_of_codes(const at::Tensor& codes, const LabelGroups& groups,
                                LabelInformationArgs args) {
  const int64_t features = codes.size(0), samples = codes.size(1);
  at::Tensor result = at::empty({features}, codes.options().dtype(at::kFloat));
  if (args.groups > 256) {
    const SortedLabelInformationArgs sorted{codes.const_data_ptr<uint8_t>(),
                                            groups.order.data(),
                                            groups.view(),
                                            features,
                                            samples,
                                            args.bins,
                                            args.classes,
                                            args.terms,
                                            args.information,
                                            result.mutable_data_ptr<float>()};
    for_each_feature_range(features, samples, [&](int64_t begin, int64_t end) {
      sorted_label_information_cpu(sorted, begin, end);
    });
    return result;
  }
  std::vector<uint8_t> group_of(samples);
  for (int64_t group = 0; group < args.groups; ++group) {
    for (int64_t i = groups.begin[group]; i < groups.begin[group + 1]; ++i) {
      group_of[groups.order[i]] = static_cast<uint8_t>(group);
    }
  }
  args.feature_stride = std::max<int64_t>(args.groups, 1) * args.bins;
  args.group_stride = args.bins;
  const int64_t width_at_once = std::max(kNarrowest, kCounts / args.feature_stride);
  std::vector<int64_t> counts(std::min(features, width_at_once) * args.feature_stride);
  args.counts = counts.data();
  for (int64_t first = 0; first < features; first += width_at_once) {
    const int64_t width = std::min(width_at_once, features - first);
    const JointHistogramArgs joint{
        {group_of.data(), codes.const_data_ptr<uint8_t>() + first * samples, 1, width, samples,
         static_cast<int32_t>(args.groups), args.bins},
        counts.data()};
    for_each_pair_block(joint.codes, /*symmetric=*/false, /*groups=*/1,
                        [&](const PairBlock& block) { joint_histogram_cpu(joint, block); });
    args.result = result.mutable_data_ptr<float>() + first;
    label_information_cpu(args, 0, width);
  }
  return result;
}

at::Tensor label_information(const at::Tensor& x, const at::Tensor& labels, int64_t bins,
                             const std::optional<at::Tensor>& low,
                             const std::optional<at::Tensor>& high,
                             const std::optional<at::Tensor>& edges, c10::string_view nan_policy,
                             c10::string_view outliers, c10::string_view quantity,
                             c10::string_view estimator, std::optional<c10::string_view> normalized,
                             std::optional<double> base, c10::string_view caller_view) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller_view);
  const std::string& caller = request.caller;
  const ResolvedBinning binning = resolve_binning(x, request);
  const LabelGroups groups = group_by_label(labels, x.size(0), caller, "y");
  EntropyTerms terms = entropy_terms(parse_estimator(estimator, caller), x.size(0));
  const std::vector<int64_t> table = tabulate(terms, x.size(0));
  LabelInformationArgs args{};
  args.groups = groups.view().count;
  args.bins = static_cast<int32_t>(bins);
  args.classes = static_cast<double>(groups.classes);
  args.terms = terms;
  args.information = parse_information(quantity, terms.estimator, normalized, base, caller);

  const bool codes_suffice = bins <= 255 || !(request.omit_nan || request.drop_outliers);
  if (binning.low.defined() && codes_suffice && keep_counts(args.groups, x.size(0), bins)) {
    return information_of_values(x, request, binning, groups, args);
  }
  at::Tensor codes = x.t();
  if (at::isFloatingType(x.scalar_type())) {
    codes = std::get<0>(dispatched<Discretize>("simmim_ext::discretize")
                            .call(x, bins, low, high, edges, nan_policy, outliers, caller, "x"));
  }
  const std::vector<int64_t> counts = count_codes(codes, bins, caller, "x");
  valid_samples(counts.data(), codes.size(0), bins, caller, "x");
  return information_of_codes(codes.contiguous(), groups, args);
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
  const int64_t threads = threads_for(args.features * args.samples * args.classes / kThreadWork);
  const int64_t range =
      std::clamp<int64_t>((args.features + threads - 1) / threads, 1, kSoftLabelFeatures);
  parallel_tasks((args.features + range - 1) / range, [&](int64_t i) {
    soft_label_information_cpu(args, i * range, std::min((i + 1) * range, args.features));
  });
  return result;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def(
      "label_information(Tensor x, Tensor labels, int bins, Tensor? low, Tensor? high, "
      "Tensor? edges, str nan_policy, str outliers, str quantity, str estimator, str? normalized, "
      "float? base, str caller) -> Tensor");
  m.def(
      "soft_label_information(Tensor x, Tensor probabilities, int bins, str? normalized, "
      "float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("label_information", &simmim::label_information);
  m.impl("soft_label_information", &simmim::soft_label_information);
}

#include "information.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "../kernels/histogram.h"
#include "../kernels/joint_carry_save.h"
#include "interrupt.h"
#include "parallel.h"

namespace simmim {
namespace {

// The value that a name stands for, or an error that lists the names there are.
template <typename Value, size_t kCount>
Value parse(c10::string_view name, const std::array<std::pair<const char*, Value>, kCount>& table,
            const std::string& caller, const char* argument) {
  std::string names;
  for (const auto& [known, value] : table) {
    if (name == known) return value;
    names += (names.empty() ? "'" : ", '") + std::string(known) + "'";
  }
  TORCH_CHECK_VALUE(false, caller, ": ", argument, " must be one of ", names, ", got '", name, "'");
}

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = int64_t{1} << 16;

// What a thread that counts pairs takes at most (joint.h and conditional.h say so): least while an
// order of the samples serves at once, or without one.
int64_t pair_scratch(const CodePair& codes, bool sorted, int64_t groups) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  if (groups > 1) return 14 * kMiB;
  if (!sorted) return 2 * kMiB;
  return codes.samples <= 16384 ? 6 * kMiB : 14 * kMiB;
}

}  // namespace

Estimator parse_estimator(c10::string_view name, const std::string& caller) {
  constexpr std::array<std::pair<const char*, Estimator>, 5> kNames{{
      {"plugin", Estimator::plugin},
      {"miller_madow", Estimator::miller_madow},
      {"grassberger", Estimator::grassberger},
      {"chao_shen", Estimator::chao_shen},
      {"shrink", Estimator::shrink},
  }};
  return parse(name, kNames, caller, "estimator");
}

Quantity parse_quantity(c10::string_view name, const std::string& caller) {
  constexpr std::array<std::pair<const char*, Quantity>, 3> kNames{{
      {"joint_entropy", Quantity::joint_entropy},
      {"conditional_entropy", Quantity::conditional_entropy},
      {"mutual_information", Quantity::mutual_information},
  }};
  return parse(name, kNames, caller, "quantity");
}

Normalization parse_normalization(std::optional<c10::string_view> name, const std::string& caller) {
  if (!name) return Normalization::none;
  constexpr std::array<std::pair<const char*, Normalization>, 4> kNames{{
      {"min", Normalization::minimum},
      {"max", Normalization::maximum},
      {"arithmetic", Normalization::arithmetic},
      {"geometric", Normalization::geometric},
  }};
  return parse(*name, kNames, caller, "normalized");
}

double nats_per_unit(std::optional<double> base, const std::string& caller) {
  if (!base) return 1;
  TORCH_CHECK_VALUE(std::isfinite(*base) && *base > 1, caller,
                    ": base must be a finite number above 1, got ", *base);
  return std::log(*base);
}

Information parse_information(c10::string_view quantity, Estimator estimator,
                              std::optional<c10::string_view> normalized,
                              std::optional<double> base, const std::string& caller) {
  return {parse_quantity(quantity, caller), parse_normalization(normalized, caller),
          estimator == Estimator::plugin, nats_per_unit(base, caller)};
}

std::vector<int64_t> tabulate(EntropyTerms& terms, int64_t samples) {
  constexpr int64_t kLargest = int64_t{1} << 16;
  std::vector<int64_t> table(static_cast<size_t>(std::min(samples + 1, kLargest)));
  for (size_t count = 0; count < table.size(); ++count) {
    table[count] = compute_term(terms, static_cast<int64_t>(count));
  }
  terms.table = table.data();
  terms.table_size = static_cast<int64_t>(table.size());
  return table;
}

void check_codes(const at::Tensor& codes, int64_t bins, const std::string& caller,
                 const std::string& argument) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, caller, ": codes of ", argument,
                   " must be uint8, got ", codes.scalar_type());
  TORCH_CHECK_VALUE(codes.dim() == 2, caller, ": codes of ", argument,
                    " must have shape [features, samples], got ", codes.sizes());
  TORCH_CHECK_VALUE(bins >= 2 && bins <= 256, caller, ": bins of ", argument,
                    " must be between 2 and 256, got ", bins);
}

void raise_bad_code(const at::Tensor& codes, int64_t feature, int64_t sample, int64_t bins,
                    const std::string& caller, const std::string& argument) {
  TORCH_CHECK_VALUE(false, caller, ": codes of ", argument, " must be below bins = ", bins,
                    " (or 255, no sample), got ", codes[feature][sample].item<int64_t>(),
                    " in feature ", feature);
}

void check_valid(int64_t valid, int64_t feature, const std::string& caller,
                 const std::string& argument) {
  TORCH_CHECK_VALUE(valid >= 2, caller, ": ", argument,
                    " must have at least 2 valid samples in every feature, got ", valid,
                    " in feature ", feature);
}

void check_few_samples(int64_t samples, const std::string& caller) {
  TORCH_CHECK_VALUE(samples < (int64_t{1} << 32), caller,
                    ": x must have fewer than 2^32 samples on CUDA, got ", samples);
}

std::vector<int64_t> count_codes(const at::Tensor& codes, int64_t bins, const std::string& caller,
                                 const std::string& argument) {
  check_codes(codes, bins, caller, argument);
  const int64_t features = codes.size(0), samples = codes.size(1);
  std::vector<int64_t> counts(features * bins);
  HistogramArgs<uint8_t> args{codes.const_data_ptr<uint8_t>(),
                              samples,
                              features,
                              codes.stride(1),
                              codes.stride(0),
                              {},
                              counts.data()};
  args.binning.bins = static_cast<int32_t>(bins);
  for_each_feature_range(features, samples, [&](int64_t begin, int64_t end) {
    histogram_cpu(args, begin, end, 0, samples);
  });
  if (std::accumulate(counts.begin(), counts.end(), int64_t{0}) == features * samples) {
    return counts;
  }
  const at::Tensor bad = codes.ge(bins).logical_and_(codes != kInvalidCode).nonzero();
  if (bad.size(0) == 0) return counts;
  raise_bad_code(codes, bad[0][0].item<int64_t>(), bad[0][1].item<int64_t>(), bins, caller,
                 argument);
}

std::vector<int64_t> valid_samples(const int64_t* counts, int64_t features, int64_t bins,
                                   const std::string& caller, const std::string& argument,
                                   int64_t first_feature) {
  std::vector<int64_t> valid(features);
  for (int64_t f = 0; f < features; ++f) {
    valid[f] = std::accumulate(counts + f * bins, counts + (f + 1) * bins, int64_t{0});
    check_valid(valid[f], first_feature + f, caller, argument);
  }
  return valid;
}

CodeMarginals marginals_of(const at::Tensor& codes, int64_t bins, const EntropyTerms& terms,
                           const std::string& caller, const std::string& argument) {
  const std::vector<int64_t> counts = count_codes(codes, bins, caller, argument);
  CodeMarginals marginals;
  marginals.valid = valid_samples(counts.data(), codes.size(0), bins, caller, argument);
  for (int64_t f = 0; f < codes.size(0); ++f) {
    marginals.entropy.push_back(entropy_of_counts(
        terms, marginals.valid[f], static_cast<double>(bins), counts.data() + f * bins, bins));
  }
  return marginals;
}

void check_labels(const at::Tensor& labels, int64_t samples, const std::string& caller,
                  const std::string& argument) {
  TORCH_CHECK_TYPE(at::isIntegralType(labels.scalar_type(), /*includeBool=*/true), caller, ": ",
                   argument, " must hold integer class labels, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 1, caller, ": ", argument,
                    " must have shape [samples] where it holds class labels, got ", labels.sizes());
  check_same_samples(samples, labels.size(0), caller, argument);
  TORCH_CHECK_VALUE(samples < (int64_t{1} << 32), caller, ": ", argument,
                    " must have fewer than 2^32 samples, got ", samples);
}

void raise_bad_label(const at::Tensor& labels, int64_t sample, const std::string& caller,
                     const std::string& argument) {
  const int64_t label = labels[sample].to(at::kLong).item<int64_t>();
  const bool wraps = labels.scalar_type() == at::ScalarType::UInt64;  // 2^63 and more
  TORCH_CHECK_VALUE(false, caller, ": ", argument, " must hold labels between 0 and 65535, got ",
                    wraps ? std::to_string(static_cast<uint64_t>(label)) : std::to_string(label),
                    " in sample ", sample);
}

LabelGroups group_by_label(const at::Tensor& labels, int64_t samples, const std::string& caller,
                           const std::string& argument) {
  check_labels(labels, samples, caller, argument);
  const at::Tensor wide = labels.to(at::kLong).contiguous();
  const int64_t* label = wide.const_data_ptr<int64_t>();

  std::vector<int64_t> next(kMostClasses + 1);
  LabelGroups groups;
  for (int64_t i = 0; i < samples; ++i) {
    if (label[i] < 0 || label[i] >= kMostClasses) raise_bad_label(labels, i, caller, argument);
    ++next[label[i] + 1];
    groups.classes = std::max(groups.classes, label[i] + 1);
  }
  groups.begin.push_back(0);
  for (int64_t c = 0; c < groups.classes; ++c) {
    if (next[c + 1] > 0) groups.begin.push_back(groups.begin.back() + next[c + 1]);
    next[c + 1] += next[c];
  }
  groups.order.resize(samples);
  for (int64_t i = 0; i < samples; ++i) {
    groups.order[next[label[i]]++] = static_cast<uint32_t>(i);
  }
  return groups;
}

void check_same_device(const at::Tensor& x, const at::Tensor& other, const std::string& caller,
                       const std::string& name) {
  TORCH_CHECK_VALUE(x.device() == other.device(), caller, ": ", name, " must be on x's device ",
                    x.device(), ", got ", other.device());
}

void check_same_samples(int64_t x_samples, int64_t other_samples, const std::string& caller,
                        const std::string& other) {
  TORCH_CHECK_VALUE(x_samples == other_samples, caller, ": ", other,
                    " must have as many samples as x, got ", other_samples, " and ", x_samples);
}

void check_shared_samples(int64_t pair, int64_t y_features, const std::string& caller) {
  TORCH_CHECK_VALUE(pair < 0, caller,
                    ": every pair must share at least 2 valid samples, got fewer ", "for feature ",
                    pair / y_features, " of x and feature ", pair % y_features, " of y");
}

CodePair code_pair(const at::Tensor& x, const at::Tensor& y, int64_t x_bins, int64_t y_bins) {
  return {
      x.const_data_ptr<uint8_t>(),  y.const_data_ptr<uint8_t>(), x.size(0), y.size(0), x.size(1),
      static_cast<int32_t>(x_bins), static_cast<int32_t>(y_bins)};
}

void for_each_pair_block(const CodePair& codes, bool symmetric, int64_t groups,
                         const std::function<void(const PairBlock&)>& work) {
  // Some milliseconds of work. Carry-save addition counts faster, sorts a feature of x once for all
  // features of y in the block, and turns those of y into words once for all of x.
  const bool sorted = carry_save_pays(codes, groups);
  const int64_t cells = groups * codes.x_bins * codes.y_bins;
  const int64_t per_pair = codes.samples + (sorted ? 4 * cells : 0);
  const int64_t most = int64_t{1} << (sorted ? 30 : 22), widest = sorted ? 128 : 64;
  const int64_t scratch = pair_scratch(codes, sorted, groups);
  const int64_t threads = threads_for(std::max(codes.x_features, codes.y_features), scratch);
  const auto share = [&](int64_t features) {  // two blocks for each thread, as each turns y anew
    return threads == 1 ? features : features / (2 * threads);
  };
  int64_t x_side = 1;
  while (x_side < std::min(widest, share(codes.x_features)) &&
         x_side * (sorted ? 512 : 4 * x_side) * per_pair <= most) {
    x_side *= 2;
  }
  int64_t y_side = x_side;
  if (sorted) y_side = codes.x_features > 1 ? 512 : std::clamp<int64_t>(share(512), 64, 512);
  std::vector<PairBlock> blocks;
  for (int64_t x = 0; x < codes.x_features; x += x_side) {
    const int64_t x_end = std::min(x + x_side, codes.x_features);
    for (int64_t y = symmetric ? x : 0; y < codes.y_features; y += y_side) {
      blocks.push_back({x, x_end, y, std::min(y + y_side, codes.y_features)});
    }
  }
  const auto count = static_cast<int64_t>(blocks.size());
  if (count * x_side * y_side * per_pair < kGrain) {
    for (const PairBlock& block : blocks) work(block);
    return;
  }
  // A few blocks for each thread, then a look whether the caller still wants the rest.
  const int64_t round = (sorted ? 4 : 16) * threads_for(count, scratch);
  for (int64_t first = 0; first < count; first += round) {
    parallel_tasks(
        std::min(round, count - first), [&](int64_t i) { work(blocks[first + i]); }, scratch);
    check_interrupt();
  }
}

void for_each_feature_range(int64_t features, int64_t work_per_feature,
                            const std::function<void(int64_t, int64_t)>& work) {
  const int64_t range = std::min<int64_t>(64, 1 + kGrain / std::max<int64_t>(1, work_per_feature));
  parallel_tasks((features + range - 1) / range,
                 [&](int64_t i) { work(i * range, std::min((i + 1) * range, features)); });
}

void FirstIndex::report(int64_t index) {
  if (index < 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (first_ < 0 || index < first_) first_ = index;
}

}  // namespace simmim

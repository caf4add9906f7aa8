// What the operators that return information check and parse alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../kernels/entropy.h"
#include "../kernels/information.h"
#include "../kernels/joint.h"

namespace simmim {

// Error texts begin with the public function that was called: caller.
Estimator parse_estimator(c10::string_view name, const std::string& caller);
Quantity parse_quantity(c10::string_view name, const std::string& caller);
Normalization parse_normalization(std::optional<c10::string_view> name, const std::string& caller);

// ln(base): what a result in nats is divided by. No base means nats.
double nats_per_unit(std::optional<double> base, const std::string& caller);

Information parse_information(c10::string_view quantity, Estimator estimator,
                              std::optional<c10::string_view> normalized,
                              std::optional<double> base, const std::string& caller);

// Raises unless codes is uint8 [features, samples], whatever its values, and bins 2..256.
void check_codes(const at::Tensor& codes, int64_t bins, const std::string& caller,
                 const std::string& argument);

// Raises over one code that is neither below bins nor 255.
[[noreturn]] void raise_bad_code(const at::Tensor& codes, int64_t feature, int64_t sample,
                                 int64_t bins, const std::string& caller,
                                 const std::string& argument);

// Raises where a feature has fewer than 2 valid samples.
void check_valid(int64_t valid, int64_t feature, const std::string& caller,
                 const std::string& argument);

// Raises where there are more samples than 32-bit counters on CUDA can count.
void check_few_samples(int64_t samples, const std::string& caller);

// Raises unless counts is int64 [..., bins], or [x_features, y_features, x_bins, y_bins].
void check_counts(const at::Tensor& counts, const std::string& caller);
// Raises where one of counts [rows, cells] is negative, or a row adds up to 2^63 or more.
void check_count_values(const int64_t* counts, int64_t rows, int64_t cells,
                        const std::string& caller);
void check_joint_counts(const at::Tensor& counts, const std::string& caller);

// Counts [features, bins] of codes. Raises unless codes is uint8 [features, samples] below bins (or
// 255, no sample). `argument` is what error texts call the codes.
std::vector<int64_t> count_codes(const at::Tensor& codes, int64_t bins, const std::string& caller,
                                 const std::string& argument);

// Each feature's samples, of counts [features, bins]. Raises where one has fewer than 2, counting
// features from first_feature.
std::vector<int64_t> valid_samples(const int64_t* counts, int64_t features, int64_t bins,
                                   const std::string& caller, const std::string& argument,
                                   int64_t first_feature = 0);

// Each feature's valid samples and its entropy in nats over them.
struct CodeMarginals {
  std::vector<int64_t> valid;
  std::vector<double> entropy;
};

// Raises where count_codes and valid_samples do.
CodeMarginals marginals_of(const at::Tensor& codes, int64_t bins, const EntropyTerms& terms,
                           const std::string& caller, const std::string& argument);

// Samples sorted by a class label.
struct LabelGroups {
  std::vector<uint32_t> order;  // [samples], stable
  std::vector<int64_t> begin;   // [groups + 1]
  int64_t classes = 0;          // the largest label + 1

  SampleGroups view() const { return {begin.data(), static_cast<int64_t>(begin.size()) - 1}; }
};

constexpr int64_t kMostClasses = 65536;

// Raises unless labels is integer [samples], whatever its values.
void check_labels(const at::Tensor& labels, int64_t samples, const std::string& caller,
                  const std::string& argument);

[[noreturn]] void raise_bad_label(const at::Tensor& labels, int64_t sample,
                                  const std::string& caller, const std::string& argument);

// Raises unless labels is integer [samples] of 0..65,535.
LabelGroups group_by_label(const at::Tensor& labels, int64_t samples, const std::string& caller,
                           const std::string& argument);

// [samples, classes] double with rows that sum to 1, from probabilities that do so within the
// precision of their dtype. Rows that do not raise, or are NaN while a CUDA graph is recorded.
at::Tensor checked_probabilities(const at::Tensor& probabilities, int64_t samples,
                                 const std::string& caller);

// Raises unless logits is floating [samples, classes], at least 2 by 1.
void check_logits(const at::Tensor& logits, const std::string& caller);

// Raises where a sample, the first whose logits are NaN or infinite, is not -1.
void check_sample_is_finite(int64_t sample, const std::string& caller);

// Raises unless the other argument is where x is: the dispatcher lets a CUDA operator have both.
void check_same_device(const at::Tensor& x, const at::Tensor& other, const std::string& caller,
                       const std::string& name);

// x and the other argument hold the same samples.
void check_same_samples(int64_t x_samples, int64_t other_samples, const std::string& caller,
                        const std::string& other);

// Raises where pair = x * y_features + y is not -1: the features share fewer than 2 valid samples.
void check_shared_samples(int64_t pair, int64_t y_features, const std::string& caller);

CodePair code_pair(const at::Tensor& x, const at::Tensor& y, int64_t x_bins, int64_t y_bins);

// Calls work(block) for blocks of pairs that cover all of them (where symmetric: those that reach
// the diagonal or lie right of it), on several threads where they are worth it. The samples are in
// so many groups, counted apart.
void for_each_pair_block(const CodePair& codes, bool symmetric, int64_t groups,
                         const std::function<void(const PairBlock&)>& work);

// Calls work(begin, end) for ranges that cover all features, likewise.
void for_each_feature_range(int64_t features, int64_t work_per_feature,
                            const std::function<void(int64_t, int64_t)>& work);

// The smallest index that any thread reports; -1 reports nothing.
class FirstIndex {
 public:
  void report(int64_t index);
  int64_t get() const { return first_; }

 private:
  std::mutex mutex_;
  int64_t first_ = -1;
};

// The terms of all counts up to a size worth keeping, for kernels that meet each many times.
std::vector<int64_t> tabulate(EntropyTerms& terms, int64_t samples);

}  // namespace simmim

#include "../kernels/entropy.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "backend.h"
#include "binning.h"
#include "information.h"

namespace simmim {

void check_counts(const at::Tensor& counts, const std::string& caller) {
  TORCH_CHECK_TYPE(counts.scalar_type() == at::kLong, caller, ": counts must be int64, got ",
                   counts.scalar_type());
  TORCH_CHECK_VALUE(counts.dim() >= 1 && counts.size(-1) >= 1, caller,
                    ": counts must have shape [..., bins] with bins >= 1, got ", counts.sizes());
}

void check_count_values(const int64_t* counts, int64_t rows, int64_t cells,
                        const std::string& caller) {
  const int64_t size = rows * cells;
  uint64_t bits = 0;  // as large as the largest, and of a negative one the highest is set
  for (int64_t i = 0; i < size; ++i) bits |= static_cast<uint64_t>(counts[i]);
  if (bits <= static_cast<uint64_t>(INT64_MAX / cells)) return;
  const int64_t least = *std::min_element(counts, counts + size);
  TORCH_CHECK_VALUE(least >= 0, caller, ": counts must not be negative, got ", least);
  for (int64_t begin = 0; begin < size; begin += cells) {
    int64_t sum = 0;
    for (int64_t i = begin; i < begin + cells; ++i) {
      TORCH_CHECK_VALUE(!__builtin_add_overflow(sum, counts[i], &sum), caller,
                        ": counts must add up to less than 2^63, got ",
                        std::accumulate(counts + begin, counts + begin + cells, 0.0));
    }
  }
}

namespace {

constexpr int64_t kCounts = int64_t{1} << 21;  // kept at a time: 16 MiB

// Of counts [features, bins]; the first of them is feature `first` to error texts.
void entropy_on_cpu(const EntropyArgs& args, const std::string& caller, int64_t first = 0) {
  const int64_t bins = args.bins;
  const std::vector<int64_t> valid =
      valid_samples(args.counts, args.features, bins, caller, "x", first);
  for_each_feature_range(args.features, bins, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      const EntropyTerms terms = entropy_terms(args.estimator, valid[f]);
      const double nats = entropy_of_counts(terms, valid[f], static_cast<double>(bins),
                                            args.counts + f * bins, bins);
      args.entropy[f] = static_cast<float>(nats / args.nats_per_unit);
    }
  });
}

at::Tensor entropy(const at::Tensor& counts, c10::string_view estimator, std::optional<double> base,
                   c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_counts(counts, caller);
  const at::Tensor table = counts.contiguous();
  const int64_t bins = table.size(-1), features = table.numel() / bins;
  check_count_values(table.const_data_ptr<int64_t>(), features, bins, caller);
  at::Tensor result =
      at::empty(counts.sizes().slice(0, counts.dim() - 1), counts.options().dtype(at::kFloat));
  entropy_on_cpu(
      {table.const_data_ptr<int64_t>(), features, bins, parse_estimator(estimator, caller),
       nats_per_unit(base, caller), result.mutable_data_ptr<float>()},
      caller);
  return result;
}

at::Tensor marginal_entropy(const at::Tensor& x, int64_t bins, const std::optional<at::Tensor>& low,
                            const std::optional<at::Tensor>& high,
                            const std::optional<at::Tensor>& edges,
                            std::optional<double> shared_low, std::optional<double> shared_high,
                            c10::string_view nan_policy, c10::string_view outliers,
                            c10::string_view estimator, std::optional<double> base,
                            c10::string_view caller) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller, "x",
                               shared_low, shared_high);
  EntropyArgs args{nullptr,
                   0,
                   bins,
                   parse_estimator(estimator, request.caller),
                   nats_per_unit(base, request.caller),
                   nullptr};
  const ResolvedBinning binning = resolve_binning(x, request);
  at::Tensor result = at::empty({x.size(1)}, x.options().dtype(at::kFloat));
  const int64_t width = std::min(x.size(1), kCounts / bins);
  std::vector<int64_t> counts(width * bins);
  for (int64_t first = 0; first < x.size(1); first += width) {
    args.counts = counts.data();
    args.features = std::min(width, x.size(1) - first);
    args.entropy = result.mutable_data_ptr<float>() + first;
    histogram_on_cpu(x, request, binning, first, args.features, counts.data());
    entropy_on_cpu(args, request.caller, first);
  }
  return result;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("entropy(Tensor counts, str estimator, float? base, str caller) -> Tensor");
  m.def(
      "marginal_entropy(Tensor x, int bins, Tensor? low, Tensor? high, Tensor? edges, "
      "float? shared_low, float? shared_high, str nan_policy, str outliers, str estimator, "
      "float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("entropy", &simmim::entropy);
  m.impl("marginal_entropy", &simmim::marginal_entropy);
}
// Nothing is differentiated, and torch's own fallback would box every argument to find that out.
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) {
  m.impl("entropy", torch::CppFunction::makeFallthrough());
  m.impl("marginal_entropy", torch::CppFunction::makeFallthrough());
}

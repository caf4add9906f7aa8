#include "../kernels/entropy.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "backend.h"
#include "information.h"

namespace simmim {

void check_counts(const at::Tensor& counts, const std::string& caller) {
  TORCH_CHECK_TYPE(counts.scalar_type() == at::kLong, caller, ": counts must be int64, got ",
                   counts.scalar_type());
  TORCH_CHECK_VALUE(counts.dim() >= 1, caller,
                    ": counts must have shape [..., bins], got a scalar");
}

namespace {

at::Tensor entropy(const at::Tensor& counts, c10::string_view estimator, std::optional<double> base,
                   c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_counts(counts, caller);
  const Estimator kind = parse_estimator(estimator, caller);
  const double unit = nats_per_unit(base, caller);
  const at::Tensor table = counts.contiguous();
  const int64_t bins = table.size(-1), features = bins > 0 ? table.numel() / bins : 0;
  at::Tensor result =
      at::empty(counts.sizes().slice(0, counts.dim() - 1), counts.options().dtype(at::kFloat));
  const int64_t* cells = table.const_data_ptr<int64_t>();
  const std::vector<int64_t> valid = valid_samples(cells, features, bins, caller, "x");
  float* out = result.mutable_data_ptr<float>();
  for_each_feature_range(features, bins, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      const double nats = entropy_of_counts(entropy_terms(kind, valid[f]), valid[f],
                                            static_cast<double>(bins), cells + f * bins, bins);
      out[f] = static_cast<float>(nats / unit);
    }
  });
  return result;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("entropy(Tensor counts, str estimator, float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) { m.impl("entropy", &simmim::entropy); }

#include "../kernels/predictive.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include "../kernels/entropy.h"
#include "backend.h"
#include "information.h"
#include "parallel.h"

namespace simmim {

void check_logits(const at::Tensor& logits, const std::string& caller) {
  TORCH_CHECK_TYPE(at::isFloatingType(logits.scalar_type()), caller,
                   ": logits must be float16, bfloat16, float32 or float64, got ",
                   logits.scalar_type());
  TORCH_CHECK_VALUE(logits.dim() == 2, caller, ": logits must have shape [samples, classes], got ",
                    logits.sizes());
  TORCH_CHECK_VALUE(logits.size(0) >= 2 && logits.size(1) >= 1, caller,
                    ": logits must have at least 2 samples and 1 class, got ", logits.sizes());
}

void check_sample_is_finite(int64_t sample, const std::string& caller) {
  TORCH_CHECK_VALUE(sample < 0, caller,
                    ": logits must be finite (or -inf for some classes), got NaN or infinity in "
                    "sample ",
                    sample);
}

namespace {

at::Tensor predictive_information(const at::Tensor& logits, std::optional<double> base,
                                  c10::string_view caller_view) {
  const std::string caller(caller_view);
  check_logits(logits, caller);
  const double unit = nats_per_unit(base, caller);
  const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = logits.to(dtype).contiguous();
  const int64_t samples = wide.size(0), classes = wide.size(1);

  // The same sixteen parts on any number of threads, added up in order: the same bits.
  const int64_t tiles = (samples + kPredictiveLanes - 1) / kPredictiveLanes;
  const int64_t parts = std::min<int64_t>(16, tiles);
  std::vector<double> probabilities(parts * classes);
  std::vector<PredictiveSums> sums(parts);
  AT_DISPATCH_FLOATING_TYPES(dtype, "predictive_information", [&] {
    const PredictiveInformationArgs<scalar_t> args{wide.const_data_ptr<scalar_t>(), samples,
                                                   classes};
    const auto add_part = [&](int64_t part) {
      sums[part].probabilities = probabilities.data() + part * classes;
      const auto first_of = [&](int64_t part) { return tiles * part / parts * kPredictiveLanes; };
      predictive_sums_cpu(args, first_of(part), std::min(first_of(part + 1), samples), sums[part]);
    };
    if (samples * classes < (int64_t{1} << 14)) {
      for (int64_t part = 0; part < parts; ++part) add_part(part);
    } else {
      constexpr int64_t kScratch = 2 * kPredictiveLanes * sizeof(double);  // for each class
      parallel_tasks(parts, add_part, kScratch * classes);
    }
  });
  double conditional = 0;
  for (const PredictiveSums& part : sums) {
    check_sample_is_finite(part.bad_sample, caller);
    conditional += part.entropy;
  }
  const double n = static_cast<double>(samples);
  double marginal = 0;
  for (int64_t c = 0; c < classes; ++c) {
    double p = 0;
    for (int64_t part = 0; part < parts; ++part) p += probabilities[part * classes + c];
    p /= n;
    if (p > 0) marginal -= p * std::log(p);
  }
  const double nats = std::max(0.0, marginal - conditional / n);
  return at::scalar_tensor(nats / unit, logits.options().dtype(at::kFloat));
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("predictive_information(Tensor logits, float? base, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("predictive_information", &simmim::predictive_information);
}

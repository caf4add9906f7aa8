// Conditional information on CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>

#include "../kernels/conditional.h"
#include "../kernels/label.h"
#include "backend.h"
#include "information_cuda.h"

#ifdef SIMMIM_WITH_CUDA
namespace simmim {
namespace {

enum { kX = 0, kY = 1, kZ = 2, kClasses = 3, kXValid = 4, kYValid, kZValid, kPair, kKinds };

// z as class labels: integers as they are, codes with -1 where they are no bin.
struct DeviceCondition {
  at::Tensor z;         // [samples] int32
  at::Tensor values;    // [] int64
  at::Tensor alphabet;  // [] double
  int64_t most_values = kMostClasses;

  Given given() const {
    return {z.const_data_ptr<int32_t>(), values.const_data_ptr<int64_t>(),
            alphabet.const_data_ptr<double>(), most_values};
  }
};

DeviceCondition parse_condition(const at::Tensor& z, std::optional<int64_t> z_bins, int64_t samples,
                                Faults& faults, const std::string& caller) {
  if (!z_bins) {
    const DeviceLabels labels(z, samples, faults, kZ, caller, "z");
    return {labels.labels, labels.classes, labels.alphabet};
  }
  check_codes(z, *z_bins, caller, "z");
  TORCH_CHECK_VALUE(z.size(0) == 1, caller, ": z must be one feature [samples, 1], got ", z.size(0),
                    " features");
  check_same_samples(samples, z.size(1), caller, "z");
  report_bad_codes(z.contiguous(), *z_bins, faults, kZ);
  const at::Tensor codes = z[0].to(at::kInt);
  const at::Tensor values = at::full({}, *z_bins, codes.options().dtype(at::kLong));
  return {codes.masked_fill(codes >= *z_bins, -1).contiguous(), values, values.to(at::kDouble),
          *z_bins};
}

// What the samples that have z give of every feature; of z alone where there are no codes.
struct Grouped {
  at::Tensor valid, entropy;

  Grouped(const at::Tensor* codes, int64_t features, int64_t bins, const DeviceCondition& condition,
          const EntropyTerms& terms, int64_t* fault) {
    valid = at::empty({features}, condition.z.options().dtype(at::kLong));
    entropy = at::empty({features}, condition.z.options().dtype(at::kDouble));
    const GroupedTableArgs args{condition.given(),
                                codes == nullptr ? nullptr : codes->const_data_ptr<uint8_t>(),
                                features,
                                condition.z.size(0),
                                static_cast<int32_t>(bins),
                                terms,
                                valid.mutable_data_ptr<int64_t>(),
                                entropy.mutable_data_ptr<double>()};
    on_cuda(condition.z, [&](void* stream) { return grouped_entropy_cuda(args, fault, stream); });
  }
};

at::Tensor entropy_given(const at::Tensor& codes, int64_t bins, const DeviceCondition& condition,
                         const EntropyTerms& terms, double unit) {
  at::Tensor result = at::empty({codes.size(0)}, codes.options().dtype(at::kFloat));
  const LabelTableArgs args{codes.const_data_ptr<uint8_t>(),
                            condition.z.const_data_ptr<int32_t>(),
                            condition.values.const_data_ptr<int64_t>(),
                            condition.alphabet.const_data_ptr<double>(),
                            condition.most_values,
                            codes.size(0),
                            codes.size(1),
                            static_cast<int32_t>(bins),
                            terms,
                            {Quantity::conditional_entropy, Normalization::none,
                             terms.estimator == Estimator::plugin, unit},
                            result.mutable_data_ptr<float>()};
  on_cuda(codes, [&](void* stream) { return label_information_cuda(args, stream); });
  return result;
}

// y and z as one variable, of the values that occur: how many there are, the device must say.
DeviceCondition joined(const DeviceLabels& y, const DeviceCondition& z) {
  const at::Tensor none = z.z < 0;
  const at::Tensor keys = (z.z.to(at::kLong) * y.classes + y.labels).masked_fill_(none, -1);
  const auto [unique, inverse, counts] =
      at::_unique2(keys, /*sorted=*/true, /*return_inverse=*/true);
  const int64_t values = std::max<int64_t>(unique.numel(), 1);
  return {inverse.to(at::kInt).masked_fill_(none, -1).contiguous(),
          at::full({}, values, keys.options()), y.alphabet * z.alphabet, values};
}

at::Tensor conditional_on_cuda(const at::Tensor& x, const std::optional<at::Tensor>& y,
                               const at::Tensor& z, int64_t x_bins, std::optional<int64_t> y_bins,
                               std::optional<int64_t> z_bins, c10::string_view estimator,
                               std::optional<double> base, c10::string_view caller_view) {
  const std::string caller(caller_view);
  if (y) check_same_device(x, *y, caller, "y");
  check_same_device(x, z, caller, "z");
  check_codes(x, x_bins, caller, "x");
  const int64_t samples = x.size(1);
  check_few_samples(samples, caller);
  const bool y_labels = y && y->dim() == 1;
  if (y) {
    TORCH_CHECK_VALUE(y_labels || y_bins, caller, ": y_bins must be given where y is codes");
    if (!y_labels) check_codes(*y, *y_bins, caller, "y");
    check_same_samples(samples, y->size(-1), caller, "y");
  }
  const double unit = nats_per_unit(base, caller);
  Faults faults(x, kKinds), y_faults(x, 2);
  const DeviceTerms terms = device_terms(parse_estimator(estimator, caller), samples, x);
  const at::Tensor x_codes = x.contiguous();
  report_bad_codes(x_codes, x_bins, faults, kX);
  DeviceCondition condition = parse_condition(z, z_bins, samples, faults, caller);
  const Grouped z_alone(nullptr, 1, 1, condition, terms.terms, faults[kZValid]);
  const Grouped xz(&x_codes, x.size(0), x_bins, condition, terms.terms, faults[kXValid]);

  const auto check = [&](const std::vector<int64_t>& found) {
    check_bad_codes(found, kX, x_codes, x_bins, caller, "x");
    const auto check_group = [&](const Grouped& grouped, int kind, const char* argument) {
      if (found[kind] < 0) return;
      check_valid(grouped.valid[found[kind]].item<int64_t>(), found[kind], caller, argument);
    };
    if (z_bins) check_bad_codes(found, kZ, z, *z_bins, caller, "z");
    if (!z_bins && found[kZ] >= 0) {
      raise_bad_label(z, found[kZ], caller, "z");
    }
    if (z_bins) check_group(z_alone, kZValid, "z");
    check_group(xz, kXValid, "x");
  };

  if (y_labels) {
    // I(X;Y|Z) = H(X|Z) - H(X|Y,Z); waits for the device three times, and no graph records it.
    const DeviceLabels labels(*y, samples, y_faults, 0, caller, "y");
    check(faults.read());
    labels.check(y_faults.read(), 0, *y, caller, "y");
    const at::Tensor given_z = entropy_given(x_codes, x_bins, condition, terms.terms, unit);
    const at::Tensor difference =
        given_z - entropy_given(x_codes, x_bins, joined(labels, condition), terms.terms, unit);
    return terms.terms.estimator == Estimator::plugin ? difference.clamp_min(0) : difference;
  }

  const at::Tensor y_codes = y ? y->contiguous() : x_codes;
  const int64_t y_size = y ? *y_bins : x_bins;
  std::optional<Grouped> y_grouped;
  if (y) {
    report_bad_codes(y_codes, y_size, faults, kY);
    y_grouped.emplace(&y_codes, y_codes.size(0), y_size, condition, terms.terms, faults[kYValid]);
  }
  const Grouped& yz = y ? *y_grouped : xz;
  at::Tensor result = at::empty({x_codes.size(0), y_codes.size(0)}, x.options().dtype(at::kFloat));
  const ConditionalTableArgs args{condition.given(),
                                  code_pair(x_codes, y_codes, x_bins, y_size),
                                  !y.has_value(),
                                  xz.valid.const_data_ptr<int64_t>(),
                                  yz.valid.const_data_ptr<int64_t>(),
                                  z_alone.valid.const_data_ptr<int64_t>(),
                                  xz.entropy.const_data_ptr<double>(),
                                  yz.entropy.const_data_ptr<double>(),
                                  z_alone.entropy.const_data_ptr<double>(),
                                  terms.terms,
                                  unit,
                                  result.mutable_data_ptr<float>()};
  on_cuda(x,
          [&](void* stream) { return conditional_information_cuda(args, faults[kPair], stream); });
  const std::vector<int64_t> found = faults.read();
  if (y) check_bad_codes(found, kY, y_codes, y_size, caller, "y");
  check(found);
  if (y && found[kYValid] >= 0) {
    check_valid(yz.valid[found[kYValid]].item<int64_t>(), found[kYValid], caller, "y");
  }
  check_shared_samples(found[kPair], args.codes.y_features, caller);
  return result;
}

}  // namespace
}  // namespace simmim
#endif

TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("conditional_mutual_information", SIMMIM_ON_CUDA(conditional_on_cuda));
}

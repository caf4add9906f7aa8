#include "information_cuda.h"

#ifdef SIMMIM_WITH_CUDA

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "../kernels/histogram.h"
#include "backend.h"

namespace simmim {

Faults::Faults(const at::Tensor& like, int64_t kinds)
    : first_(at::full({kinds}, kNoFault, like.options().dtype(at::kLong))) {}

std::vector<int64_t> Faults::read() const {
  std::vector<int64_t> faults(first_.numel(), -1);
  if (is_capturing(first_)) return faults;
  const at::Tensor here = first_.cpu();
  for (size_t kind = 0; kind < faults.size(); ++kind) {
    const int64_t first = here.const_data_ptr<int64_t>()[kind];
    if (first != kNoFault) faults[kind] = first;
  }
  return faults;
}

DeviceTerms device_terms(Estimator estimator, int64_t samples, const at::Tensor& like) {
  constexpr int64_t kLargest = int64_t{1} << 16;
  DeviceTerms result{entropy_terms(estimator, samples),
                     at::empty({std::min(samples + 1, kLargest)}, like.options().dtype(at::kLong))};
  auto* table = result.table.mutable_data_ptr<int64_t>();
  on_cuda(like, [&](void* stream) {
    return tabulate_cuda(result.terms, table, result.table.numel(), stream);
  });
  result.terms.table = table;
  result.terms.table_size = result.table.numel();
  return result;
}

void report_bad_codes(const at::Tensor& codes, int64_t bins, Faults& faults, int64_t kind) {
  // What blocks count in are 32 bits.
  TORCH_CHECK_VALUE(codes.size(-1) < int64_t{1} << 32,
                    "codes must have fewer than 2^32 samples on CUDA, got ", codes.size(-1));
  on_cuda(codes, [&](void* stream) {
    return check_codes_cuda(codes.const_data_ptr<uint8_t>(), codes.numel(),
                            static_cast<int32_t>(bins), faults[kind], stream);
  });
}

void check_bad_codes(const std::vector<int64_t>& faults, int64_t kind, const at::Tensor& codes,
                     int64_t bins, const std::string& caller, const std::string& argument) {
  const int64_t index = faults[kind];
  if (index < 0) return;
  raise_bad_code(codes, index / codes.size(1), index % codes.size(1), bins, caller, argument);
}

DeviceCodes::DeviceCodes(const at::Tensor& given, int64_t bins, const EntropyTerms& terms,
                         Faults& faults, int64_t kind, const std::string& caller,
                         const std::string& argument)
    : bins(bins), argument(argument) {
  check_codes(given, bins, caller, argument);
  codes = given.contiguous();
  const int64_t features = codes.size(0);
  valid = at::empty({features}, codes.options().dtype(at::kLong));
  entropy = at::empty({features}, codes.options().dtype(at::kDouble));
  const at::Tensor counts = at::zeros({features, bins}, codes.options().dtype(at::kLong));
  HistogramArgs<uint8_t> count{
      codes.const_data_ptr<uint8_t>(),   codes.size(1), features, 1, codes.size(1), {},
      counts.mutable_data_ptr<int64_t>()};
  count.binning.bins = static_cast<int32_t>(bins);
  const MarginalsArgs marginals{
      counts.const_data_ptr<int64_t>(),  features, bins, terms, valid.mutable_data_ptr<int64_t>(),
      entropy.mutable_data_ptr<double>()};
  report_bad_codes(codes, bins, faults, kind);
  on_cuda(codes, [&](void* stream) { return histogram_cuda(count, nullptr, stream); });
  on_cuda(codes, [&](void* stream) { return marginals_cuda(marginals, faults[kind + 1], stream); });
}

void DeviceCodes::check(const std::vector<int64_t>& faults, int64_t kind,
                        const std::string& caller) const {
  check_bad_codes(faults, kind, codes, bins, caller, argument);
  const int64_t feature = faults[kind + 1];
  if (feature >= 0) check_valid(valid[feature].item<int64_t>(), feature, caller, argument);
}

DeviceLabels::DeviceLabels(const at::Tensor& given, int64_t samples, Faults& faults, int64_t kind,
                           const std::string& caller, const std::string& argument) {
  check_labels(given, samples, caller, argument);
  const at::Tensor wide = given.to(at::kLong);
  const at::Tensor bad = wide.lt(0).logical_or_(wide.ge(kMostClasses));
  classes = at::ones({}, wide.options());
  if (samples > 0) {
    faults.set(kind, at::where(bad, at::arange(samples, wide.options()), kNoFault).amin());
    classes = wide.amax().add_(1).clamp_(1, kMostClasses);
  }
  faults.set(kind + 1, classes);
  // While a graph is recorded nobody raises: then no sample counts, which gives NaN.
  labels = wide.masked_fill(bad.any(), -1).to(at::kInt).contiguous();
  alphabet = classes.to(at::kDouble);
}

void DeviceLabels::check(const std::vector<int64_t>& faults, int64_t kind, const at::Tensor& given,
                         const std::string& caller, const std::string& argument) const {
  const int64_t sample = faults[kind];
  if (sample >= 0) raise_bad_label(given, sample, caller, argument);
}

int64_t most_classes(const std::vector<int64_t>& faults, int64_t kind) {
  return faults[kind + 1] < 0 ? kMostClasses : faults[kind + 1];
}

}  // namespace simmim

#endif

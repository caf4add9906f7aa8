#include "../kernels/histogram.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <numeric>

#include "backend.h"
#include "binning.h"
#include "parallel.h"

namespace simmim {
namespace {

template <typename Stored>
void count_on_cpu(const HistogramArgs<Stored>& args) {
  const MatrixParts parts(args.samples, args.features);
  const int64_t size = args.features * args.binning.bins;
  std::vector<int64_t> partial((parts.chunks - 1) * size);
  parts.run([&](int64_t chunk, int64_t feature_begin, int64_t feature_end, int64_t sample_begin,
                int64_t sample_end) {
    HistogramArgs<Stored> mine = args;
    if (chunk > 0) mine.counts = partial.data() + (chunk - 1) * size;
    histogram_cpu(mine, feature_begin, feature_end, sample_begin, sample_end);
  });
  for (size_t i = 0; i < partial.size(); ++i) args.counts[i % size] += partial[i];
}

bool counts_sum_to(const at::Tensor& counts, int64_t samples) {
  if (runs_on_cuda(counts)) return holds(counts.sum() == samples);
  const int64_t* count = counts.const_data_ptr<int64_t>();
  return std::accumulate(count, count + counts.numel(), int64_t{0}) == samples;
}

at::Tensor histogram(const at::Tensor& x, int64_t bins, const std::optional<at::Tensor>& low,
                     const std::optional<at::Tensor>& high, const std::optional<at::Tensor>& edges,
                     c10::string_view nan_policy, c10::string_view outliers,
                     c10::string_view caller) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller);
  const ResolvedBinning binning = resolve_binning(x, request);
  at::Tensor counts = at::zeros({x.size(1), bins}, x.options().dtype(at::kLong));

  SIMMIM_DISPATCH_STORED(x, "histogram", [&] {
    const HistogramArgs<Stored> args{static_cast<const Stored*>(x.const_data_ptr()),
                                     x.size(0),
                                     x.size(1),
                                     x.stride(0),
                                     x.stride(1),
                                     binning.view<compute_t<Stored>>(),
                                     counts.mutable_data_ptr<int64_t>()};
#ifdef SIMMIM_WITH_CUDA
    if (runs_on_cuda(x))
      return on_cuda(x, [&](void* stream) { return histogram_cuda(args, stream); });
#endif
    count_on_cpu(args);
  });
  if (must_count_all(x, request) && !counts_sum_to(counts, x.numel())) {
    raise_uncounted(x, request, binning);
  }
  return counts;
}

}  // namespace
}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def(
      "histogram(Tensor x, int bins, Tensor? low, Tensor? high, Tensor? edges, str nan_policy, "
      "str outliers, str caller) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) { m.impl("histogram", &simmim::histogram); }
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CUDA_KEY, m) {
  m.impl("histogram", SIMMIM_ON_CUDA(histogram));
}

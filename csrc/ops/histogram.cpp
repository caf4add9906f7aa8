#include "../kernels/histogram.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "backend.h"
#include "binning.h"
#include "binning_cuda.h"
#include "parallel.h"

namespace simmim {
namespace {

template <typename Stored>
void count_on_cpu(const HistogramArgs<Stored>& args) {
  const int64_t bins = args.binning.bins, size = args.features * bins;
  const MatrixParts parts(args.samples, args.features, bins * int64_t{sizeof(int64_t)});
  std::vector<int64_t> partial((parts.chunks - 1) * size);
  parts.run([&](int64_t chunk, int64_t feature_begin, int64_t feature_end, int64_t sample_begin,
                int64_t sample_end) {
    HistogramArgs<Stored> mine = args;
    if (chunk > 0) mine.counts = partial.data() + (chunk - 1) * size;
    histogram_cpu(mine, feature_begin, feature_end, sample_begin, sample_end);
  });
  for (size_t i = 0; i < partial.size(); ++i) args.counts[i % size] += partial[i];
}

template <typename Stored>
HistogramArgs<Stored> arguments(const at::Tensor& x, const ResolvedBinning& binning, int64_t first,
                                int64_t features, int64_t* counts) {
  return {static_cast<const Stored*>(x.const_data_ptr()) + first * x.stride(1),
          x.size(0),
          features,
          x.stride(0),
          x.stride(1),
          binning.view<compute_t<Stored>>(first),
          counts};
}

at::Tensor histogram(const at::Tensor& x, int64_t bins, const std::optional<at::Tensor>& low,
                     const std::optional<at::Tensor>& high, const std::optional<at::Tensor>& edges,
                     c10::string_view nan_policy, c10::string_view outliers,
                     c10::string_view caller) {
  const BinningRequest request(bins, low, high, edges, nan_policy, outliers, caller);
#ifdef SIMMIM_WITH_CUDA
  if (runs_on_cuda(x)) {
    at::Tensor counts;
    bin_on_cuda(x, request, 0, [&](const ResolvedBinning& binning, Faults& faults) {
      counts = count_on_cuda(x, request, binning, faults);
    });
    return counts;
  }
#endif
  const ResolvedBinning binning = resolve_binning(x, request);
  at::Tensor counts = at::empty({x.size(1), bins}, x.options().dtype(at::kLong));
  histogram_on_cpu(x, request, binning, 0, x.size(1), counts.mutable_data_ptr<int64_t>());
  return counts;
}

}  // namespace

void histogram_on_cpu(const at::Tensor& x, const BinningRequest& request,
                      const ResolvedBinning& binning, int64_t first, int64_t features,
                      int64_t* counts) {
  const int64_t size = features * request.bins;
  std::fill_n(counts, size, 0);
  SIMMIM_DISPATCH_STORED(x, "histogram", [&] {
    count_on_cpu(arguments<Stored>(x, binning, first, features, counts));
  });
  if (must_count_all(x, request) &&
      std::accumulate(counts, counts + size, int64_t{0}) < x.size(0) * features) {
    raise_uncounted(x, request, binning);
  }
}

#ifdef SIMMIM_WITH_CUDA
at::Tensor count_on_cuda(const at::Tensor& x, const BinningRequest& request,
                         const ResolvedBinning& binning, Faults& faults) {
  at::Tensor counts = at::zeros({x.size(1), request.bins}, x.options().dtype(at::kLong));
  auto* count = counts.mutable_data_ptr<int64_t>();
  SIMMIM_DISPATCH_STORED(x, "histogram", [&] {
    const auto args = arguments<Stored>(x, binning, 0, x.size(1), count);
    on_cuda(x, [&](void* stream) {
      return histogram_cuda(args, uncounted(x, request, faults), stream);
    });
  });
  return counts;
}
#endif

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
// Nothing is differentiated, and torch's own fallback would box every argument to find that out.
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) {
  m.impl("histogram", torch::CppFunction::makeFallthrough());
}

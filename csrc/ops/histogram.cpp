#include "../kernels/histogram.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "backend.h"
#include "binning.h"
#include "parallel.h"

namespace simmim {
namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = int64_t{1} << 16;

template <typename Stored>
void count_on_cpu(const HistogramArgs<Stored>& args) {
  // Threads share the features where there are enough; else also the samples, counted apart and
  // then added: sums of integers, the same in any order.
  constexpr int64_t kMinFeatures = 64;  // a few cache lines of every row
  const int64_t threads = threads_for(args.samples * args.features / kGrain);
  const int64_t blocks = std::clamp<int64_t>(args.features / kMinFeatures, 1, threads);
  const int64_t chunks = threads / blocks;
  const int64_t size = args.features * args.binning.bins;
  std::vector<int64_t> partial((chunks - 1) * size);
  parallel_tasks(blocks * chunks, [&](int64_t task) {
    const int64_t block = task / chunks, chunk = task % chunks;
    HistogramArgs<Stored> mine = args;
    if (chunk > 0) mine.counts = partial.data() + (chunk - 1) * size;
    histogram_cpu(mine, args.features * block / blocks, args.features * (block + 1) / blocks,
                  args.samples * chunk / chunks, args.samples * (chunk + 1) / chunks);
  });
  for (size_t i = 0; i < partial.size(); ++i) args.counts[i % size] += partial[i];
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
  if (must_count_all(x, request) && !holds(counts.sum() == x.numel())) {
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

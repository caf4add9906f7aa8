#include <cmath>

#include "binning.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;

template <typename Value>
__device__ bool is_finite(Value value) {
  return value - value == 0;
}

template <typename Compute>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(ScaleArgs<Compute> args, int64_t* first_bad, int64_t* first_without_scale) {
  const int64_t feature = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (feature >= args.features) return;
  const auto low = static_cast<Compute>(args.low[feature * args.low_stride]);
  const auto high = static_cast<Compute>(args.high[feature * args.high_stride]);
  const Compute scale = scale_of(low, high, args.bins);
  const bool good = is_finite(low) && is_finite(high) && low <= high;
  if (!good) {
    report_fault(first_bad, feature);
  } else if (!is_finite(scale)) {
    report_fault(first_without_scale, feature);
  }
  args.bounds[feature] = good && is_finite(scale) ? low : static_cast<Compute>(NAN);
  args.bounds[args.features + feature] = high;
  args.bounds[2 * args.features + feature] = scale;
}

__global__ void __launch_bounds__(kThreads)
    check_edges_kernel(const double* edges, int64_t count, int64_t columns, int64_t* first_infinite,
                       int64_t* first_descending) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  if (!is_finite(edges[i])) {
    report_fault(first_infinite, i);
  } else if (i % columns > 0 && edges[i] < edges[i - 1]) {
    report_fault(first_descending, i);
  }
}

dim3 blocks_of(int64_t work) { return dim3(static_cast<unsigned>(ceil_div(work, kThreads))); }

}  // namespace

template <typename Compute>
int scale_cuda(const ScaleArgs<Compute>& args, int64_t* first_bad, int64_t* first_without_scale,
               void* stream) {
  if (args.features == 0) return cudaSuccess;
  return launch(scale_kernel<Compute>, blocks_of(args.features), dim3(kThreads), 0, stream, args,
                first_bad, first_without_scale);
}
template int scale_cuda(const ScaleArgs<float>&, int64_t*, int64_t*, void*);
template int scale_cuda(const ScaleArgs<double>&, int64_t*, int64_t*, void*);

int check_edges_cuda(const double* edges, int64_t rows, int64_t columns, int64_t* first_infinite,
                     int64_t* first_descending, void* stream) {
  if (rows * columns == 0) return cudaSuccess;
  return launch(check_edges_kernel, blocks_of(rows * columns), dim3(kThreads), 0, stream, edges,
                rows * columns, columns, first_infinite, first_descending);
}

}  // namespace simmim

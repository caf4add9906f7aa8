#include <algorithm>

#include "launch.cuh"
#include "rounding.cuh"
#include "special_rows.h"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // blocks stride over the rows beyond

template <typename Value>
__device__ __forceinline__ bool is_special(Value value) {
  return !(value - value == 0);
}

template <typename Stored>
__device__ bool keeps(const SpecialRowsArgs<Stored>& args, int64_t i) {
  return args.mask != nullptr ? args.mask[i] != 0 : is_kept(args.bitmap, i);
}

__device__ void assign(double value, double* to) { *to = value; }
template <typename Stored>
__device__ void assign(float value, Stored* to) {
  *to = rounded<Stored>(value);
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads) special_rows_kernel(SpecialRowsArgs<Stored> args) {
  wait_for_previous();
  using Value = compute_t<Stored>;
  int* scratch = shared_memory<int>();
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  for (int64_t row = blockIdx.x; row < args.batch; row += gridDim.x) {
    const Stored* x = args.x + row * args.inputs;
    Stored* y = args.y + row * args.outputs;
    // An infinity or NaN of x is in every product of its row: one output tells of it.
    if (!is_special(static_cast<Value>(y[0]))) continue;
    int special = 0;
    for (int64_t i = threadIdx.x; i < args.inputs; i += kThreads) {
      special |= is_special(static_cast<Value>(x[i]));
    }
    // Its barriers are also what keeps y[0] as it was until all have read it.
    if (block_total(special, scratch) == 0) continue;
    for (int64_t output = warp; output < args.outputs; output += kThreads / kWarpLanes) {
      Value sum = 0;
      for (int64_t i = lane; i < args.inputs; i += kWarpLanes) {
        const int64_t at = output * args.output_stride + i * args.input_stride;
        if (keeps(args, at)) {
          sum += static_cast<Value>(args.weight[at]) * static_cast<Value>(x[i]);
        }
      }
      sum = warp_total(sum);
      if (args.bias != nullptr) sum += static_cast<Value>(args.bias[output]);
      if (lane == 0) assign(sum, &y[output]);
    }
  }
}

}  // namespace

template <typename Stored>
int special_rows_cuda(const SpecialRowsArgs<Stored>& args, void* stream) {
  if (args.batch == 0 || args.outputs == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(args.batch, kMaxBlocks)));
  return launch_early(special_rows_kernel<Stored>, grid, dim3(kThreads),
                      kThreads / kWarpLanes * sizeof(int), stream, args);
}

#define SIMMIM_INSTANTIATE(Stored) \
  template int special_rows_cuda(const SpecialRowsArgs<Stored>&, void*);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

#include <cmath>

#include "discretize.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kFeatures = 32;       // of a tile
constexpr int kSamples = 128;       // of a tile
constexpr int kRow = kSamples + 4;  // bytes: codes of one sample lie in 32 different banks

// Each block takes one tile through shared memory, so that values are read and codes are written
// along the axis on which each of them is contiguous.
template <typename Stored>
__global__ void __launch_bounds__(kThreads)
    discretize_kernel(DiscretizeArgs<Stored> args, int64_t feature_tiles,
                      int64_t* first_uncounted) {
  uint8_t* tile = shared_memory<uint8_t>();  // [features, kRow]
  const int64_t first_feature = blockIdx.x % feature_tiles * kFeatures;
  const int64_t first_sample = blockIdx.x / feature_tiles * kSamples;
  const bool along_samples = args.sample_stride == 1;

  int64_t uncounted = args.features;  // the first feature of which this thread met no bin
  for (int i = threadIdx.x; i < kFeatures * kSamples; i += kThreads) {
    const int f = along_samples ? i / kSamples : i % kFeatures;
    const int s = along_samples ? i % kSamples : i / kFeatures;
    const int64_t feature = first_feature + f, sample = first_sample + s;
    if (feature >= args.features || sample >= args.samples) continue;
    const Stored stored = args.x[sample * args.sample_stride + feature * args.feature_stride];
    const int32_t bin = stored_bin(stored, args.binning, feature);
    if (bin == kNoBin && feature < uncounted) uncounted = feature;
    tile[f * kRow + s] = static_cast<uint8_t>(bin);  // kNoBin becomes kInvalidCode
  }
  if (uncounted < args.features && first_uncounted != nullptr) {
    report_fault(first_uncounted, uncounted);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kFeatures * kSamples; i += kThreads) {
    const int f = i / kSamples, s = i % kSamples;
    const int64_t feature = first_feature + f, sample = first_sample + s;
    if (feature >= args.features || sample >= args.samples) continue;
    args.codes[feature * args.samples + sample] = tile[f * kRow + s];
  }
}

// The first index in [0, size) of a sorted column where `holds` does, or size.
template <typename Holds>
__device__ int64_t first_where(int64_t size, const Holds& holds) {
  int64_t begin = 0, end = size;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (holds(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// A warp makes the edges of one feature.
template <typename Value>
__global__ void __launch_bounds__(kThreads)
    sorted_quantile_edges_kernel(QuantileEdgesArgs<Value> args, int64_t* first_fault) {
  const int64_t feature = int64_t{blockIdx.x} * (kThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  if (feature >= args.features) return;
  const auto at = [&](int64_t i) {
    return args.x[i * args.sample_stride + feature * args.feature_stride];
  };
  const int64_t finite = first_where(
      args.samples, [&](int64_t i) { return !(at(i) < -INFINITY) && at(i) != -INFINITY; });
  const int64_t infinite =
      first_where(args.samples, [&](int64_t i) { return !(at(i) < INFINITY); });
  const int64_t nan = first_where(args.samples, [&](int64_t i) { return at(i) != at(i); });
  const bool bad = (nan < args.samples && !args.omit_nan) ||
                   ((finite > 0 || nan > infinite) && !args.omit_infinite);
  const int lane = threadIdx.x % kWarpLanes;
  if (bad && lane == 0) report_fault(first_fault, feature);
  const int64_t last = infinite - finite - 1;
  for (int64_t k = lane; k <= args.bins; k += kWarpLanes) {
    double edge = 0;
    if (!bad && last >= 0) {
      const int64_t below = k * last / args.bins;
      const double fraction = static_cast<double>(k * last % args.bins) / args.bins;
      edge =
          interpolate(at(finite + below), at(finite + (below < last ? below + 1 : last)), fraction);
    }
    args.edges[feature * (args.bins + 1) + k] = edge;
  }
}

}  // namespace

template <typename Value>
int sorted_quantile_edges_cuda(const QuantileEdgesArgs<Value>& args, int64_t* first_fault,
                               void* stream) {
  if (args.features == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.features, kThreads / kWarpLanes)));
  return launch(sorted_quantile_edges_kernel<Value>, grid, dim3(kThreads), 0, stream, args,
                first_fault);
}
template int sorted_quantile_edges_cuda(const QuantileEdgesArgs<float>&, int64_t*, void*);
template int sorted_quantile_edges_cuda(const QuantileEdgesArgs<double>&, int64_t*, void*);

template <typename Stored>
int discretize_cuda(const DiscretizeArgs<Stored>& args, int64_t* first_uncounted, void* stream) {
  if (args.samples == 0 || args.features == 0) return cudaSuccess;
  const int64_t feature_tiles = ceil_div(args.features, kFeatures);
  const int64_t tiles = feature_tiles * ceil_div(args.samples, kSamples);
  return launch(discretize_kernel<Stored>, dim3(static_cast<unsigned>(tiles)), dim3(kThreads),
                size_t{kFeatures * kRow}, stream, args, feature_tiles, first_uncounted);
}

#define SIMMIM_INSTANTIATE(Stored) \
  template int discretize_cuda(const DiscretizeArgs<Stored>&, int64_t*, void*);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

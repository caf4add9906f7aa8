#include <algorithm>

#include "histogram.h"
#include "launch.cuh"

namespace simmim {
namespace {

constexpr int kLanes = 32;  // features of a block, one per lane: rows of x are read coalesced
constexpr int kWarps = 8;
constexpr int kAtOnce = 8;  // samples that a lane reads before it counts them: what hides memory

// Each block counts a run of samples of 32 features in shared memory. Counters lie as [bins,
// lanes], so that a lane keeps to its own bank and the lanes of a warp never collide.
template <typename Stored>
__global__ void histogram_kernel(HistogramArgs<Stored> args, int64_t samples_per_block) {
  uint32_t* counters = shared_memory<uint32_t>();
  const int32_t bins = args.binning.bins;
  const int lane = threadIdx.x;
  const int64_t feature = int64_t{blockIdx.x} * kLanes + lane;
  const int64_t begin = blockIdx.y * samples_per_block;
  const int64_t past = begin + samples_per_block;
  const int64_t end = past < args.samples ? past : args.samples;

  for (int bin = threadIdx.y; bin < bins; bin += kWarps) counters[bin * kLanes + lane] = 0;
  __syncthreads();
  if (feature < args.features) {
    const FeatureBins<compute_t<Stored>> own = bins_of(args.binning, feature);
    const Stored* x = args.x + feature * args.feature_stride;
    for (int64_t first = begin + threadIdx.y; first < end; first += kWarps * kAtOnce) {
      Stored stored[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t sample = first + i * kWarps;
        if (sample < end) stored[i] = x[sample * args.sample_stride];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * kWarps >= end) break;
        const int32_t bin = stored_bin(stored[i], own);
        if (bin != kNoBin) atomicAdd(&counters[bin * kLanes + lane], 1u);
      }
    }
  }
  __syncthreads();
  if (feature >= args.features) return;
  for (int bin = threadIdx.y; bin < bins; bin += kWarps) {
    const uint32_t count = counters[bin * kLanes + lane];
    // Two's complement: adding to a signed counter as if it were unsigned is the same addition.
    auto* total = reinterpret_cast<unsigned long long*>(&args.counts[feature * bins + bin]);
    if (count != 0) atomicAdd(total, static_cast<unsigned long long>(count));
  }
}

}  // namespace

template <typename Stored>
int histogram_cuda(const HistogramArgs<Stored>& args, void* stream) {
  if (args.samples == 0 || args.features == 0) return cudaSuccess;
  // Blocks enough to fill the device, of samples enough that clearing and adding up the counters
  // costs little beside counting.
  constexpr int64_t kBlocks = 2048, kMinSamples = 4096, kMaxGridY = 65535;
  const int64_t feature_blocks = ceil_div(args.features, kLanes);
  const int64_t wanted = std::clamp(ceil_div(kBlocks, feature_blocks), int64_t{1}, kMaxGridY);
  const int64_t samples_per_block = std::max(ceil_div(args.samples, wanted), kMinSamples);
  const dim3 grid(static_cast<unsigned>(feature_blocks),
                  static_cast<unsigned>(ceil_div(args.samples, samples_per_block)));
  const size_t shared_bytes = sizeof(uint32_t) * kLanes * args.binning.bins;
  return launch(histogram_kernel<Stored>, grid, dim3(kLanes, kWarps), shared_bytes, stream, args,
                samples_per_block);
}

#define SIMMIM_INSTANTIATE(Stored) template int histogram_cuda(const HistogramArgs<Stored>&, void*);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)
SIMMIM_INSTANTIATE(uint8_t)

}  // namespace simmim

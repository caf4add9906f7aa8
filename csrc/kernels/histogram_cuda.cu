#include <algorithm>

#include "histogram.h"
#include "launch.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kBlocksTogether = 2;  // on one multiprocessor, which leaves a thread 64 registers

enum class Rule { codes, uniform, clipped, edges };

// stored_bin of binning.h by a rule known beforehand, mostly without a branch. The bin is a row of
// counters, and what has no bin counts in one more row.
template <Rule kRule, typename Stored>
__device__ __forceinline__ int32_t row_of(Stored stored, const FeatureBins<compute_t<Stored>>& of) {
  if constexpr (kRule == Rule::codes) {
    return stored < of.bins ? stored : of.bins;
  } else if constexpr (kRule == Rule::edges) {
    const int32_t bin = stored_bin(stored, of);
    return bin == kNoBin ? of.bins : bin;
  } else {
    auto value = static_cast<compute_t<Stored>>(stored);
    if constexpr (kRule == Rule::clipped) {
      value = value < of.low ? of.low : value;  // NaN stays NaN
      value = value > of.high ? of.high : value;
    }
    const bool inside = value >= of.low && value <= of.high;
    // What is not inside becomes some integer too, which costs less than to go around it.
    const int32_t bin = uniform_bin(value, of.low, of.scale, of.bins);
    return inside ? bin : of.bins;
  }
}

// Adds what a block counted in one row to the counts of all, or reports what has no bin.
template <typename Stored>
__device__ void add_count(const HistogramArgs<Stored>& args, int64_t feature, int32_t row,
                          uint32_t count, int64_t* first_uncounted) {
  const int32_t bins = args.binning.bins;
  if (count == 0) return;
  if (row < bins) {
    // Two's complement: adding to a signed counter as if it were unsigned is the same addition.
    auto* total = reinterpret_cast<unsigned long long*>(&args.counts[feature * bins + row]);
    atomicAdd(total, static_cast<unsigned long long>(count));
  } else if (first_uncounted != nullptr) {
    report_fault(first_uncounted, feature);
  }
}

// Each block counts a run of samples in shared memory. A lane reads kWide neighbours in memory at a
// time: samples of the block's one feature (kAlongSamples), or features of one sample, of which
// each lane has kWide. Counters lie as [bins + 1, own features, lanes], so that a lane keeps to its
// own bank and the lanes of a warp never collide.
template <typename Stored, Rule kRule, bool kAlongSamples, int kWide>
__global__ void __launch_bounds__(kThreads, kBlocksTogether)
    histogram_kernel(HistogramArgs<Stored> args, int64_t samples_per_block,
                     int64_t* first_uncounted) {
  constexpr int kOwn = kAlongSamples ? 1 : kWide;  // features of a lane
  constexpr int kColumns = kOwn * kWarpLanes;
  constexpr int kStep = kAlongSamples ? kThreads * kWide : kWarps;  // samples read at a time
  constexpr int kBytes = sizeof(Vector<Stored, kWide>);
  constexpr int kAtOnce = kBytes < 8 ? 8 : 64 / kBytes;  // reads under way: what hides memory
  using Row = uint32_t[kColumns];
  Row* counters = reinterpret_cast<Row*>(shared_memory<uint32_t>());
  const int32_t rows = args.binning.bins + 1;
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t feature =
      kAlongSamples ? blockIdx.x : (int64_t{blockIdx.x} * kWarpLanes + lane) * kOwn;
  const int64_t begin = blockIdx.y * samples_per_block;
  const int64_t past = begin + samples_per_block;
  const int64_t end = past < args.samples ? past : args.samples;

  for (int i = threadIdx.x; i < rows * kColumns; i += kThreads) counters[0][i] = 0;
  __syncthreads();
  if (feature < args.features) {
    FeatureBins<compute_t<Stored>> bins[kOwn];
#pragma unroll
    for (int j = 0; j < kOwn; ++j) bins[j] = bins_of(args.binning, feature + j);
    Row* mine = reinterpret_cast<Row*>(&counters[0][lane]);
    const auto count = [&](const Vector<Stored, kWide>& stored) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const int own = kAlongSamples ? 0 : j;
        atomicAdd(&mine[row_of<kRule>(stored[j], bins[own])][own * kWarpLanes], 1u);
      }
    };
    const int64_t first = begin + (kAlongSamples ? int64_t{threadIdx.x} * kWide : warp);
    const Stored* x = args.x + feature * args.feature_stride + first * args.sample_stride;
    const int64_t step = kStep * args.sample_stride;
    int64_t left = (end - first + kStep - 1) / kStep;
    for (; left >= kAtOnce; left -= kAtOnce) {
      Vector<Stored, kWide> stored[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, x += step) stored[i] = load<kWide>(x);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) count(stored[i]);
    }
    for (; left > 0; --left, x += step) count(load<kWide>(x));
  }
  __syncthreads();
  for (int row = warp; row < rows; row += kWarps) {
    if constexpr (kAlongSamples) {
      const uint32_t total = warp_total(counters[row][lane]);
      if (lane == 0) add_count(args, feature, row, total, first_uncounted);
    } else if (feature < args.features) {
      for (int j = 0; j < kOwn; ++j) {
        const uint32_t own = counters[row][j * kWarpLanes + lane];
        add_count(args, feature + j, row, own, first_uncounted);
      }
    }
  }
}

template <int kOwn>
size_t counter_bytes(int32_t bins) {
  return sizeof(uint32_t) * kOwn * kWarpLanes * (bins + 1);
}

template <typename Stored, Rule kRule, bool kAlongSamples, int kWide>
int launch_histogram(const HistogramArgs<Stored>& args, int64_t* first_uncounted, void* stream) {
  // Blocks enough to fill the device evenly, of samples enough that clearing and adding up the
  // counters costs little beside counting, and few enough for counters of 32 bits.
  constexpr int64_t kBlocks = 1024, kMinSamples = 2048, kMaxSamples = 1 << 30;
  constexpr int kOwn = kAlongSamples ? 1 : kWide;
  const int64_t across = ceil_div(args.features, kAlongSamples ? 1 : kOwn * kWarpLanes);
  const int64_t wanted = ceil_div(args.samples, std::max<int64_t>(kBlocks / across, 1));
  const int64_t samples = ceil_div(std::clamp(wanted, kMinSamples, kMaxSamples), kWide) * kWide;
  const dim3 grid(static_cast<unsigned>(across),
                  static_cast<unsigned>(ceil_div(args.samples, samples)));
  return launch(histogram_kernel<Stored, kRule, kAlongSamples, kWide>, grid, dim3(kThreads),
                counter_bytes<kOwn>(args.binning.bins), stream, args, samples, first_uncounted);
}

// Lanes lie along the axis on which x is contiguous, and read vectors where it is made of them; but
// not to search edges, which takes longer than to read.
template <typename Stored, Rule kRule>
int histogram_by(const HistogramArgs<Stored>& args, int64_t* first_uncounted, void* stream) {
  constexpr int kSamples = kRule == Rule::edges ? 1 : 16 / sizeof(Stored);
  constexpr int kFeatures = kSamples < 4 ? kSamples : 4;
  constexpr size_t kMostShared = 48 * 1024;  // what a block can have on every device
  auto launch_it = launch_histogram<Stored, kRule, false, 1>;
  if (args.sample_stride == 1 && (args.feature_stride != 1 || args.features == 1)) {
    const bool vectors = fits_vectors<kSamples>(args.x, args.samples) &&
                         (args.features == 1 || args.feature_stride % kSamples == 0);
    launch_it = vectors ? launch_histogram<Stored, kRule, true, kSamples>
                        : launch_histogram<Stored, kRule, true, 1>;
  } else if (args.feature_stride == 1 && args.features >= kFeatures * kWarpLanes &&
             fits_vectors<kFeatures>(args.x, args.features) &&
             args.sample_stride % kFeatures == 0 &&
             counter_bytes<kFeatures>(args.binning.bins) <= kMostShared) {
    launch_it = launch_histogram<Stored, kRule, false, kFeatures>;
  }
  return launch_it(args, first_uncounted, stream);
}

}  // namespace

template <typename Stored>
int histogram_cuda(const HistogramArgs<Stored>& args, int64_t* first_uncounted, void* stream) {
  if (args.samples == 0 || args.features == 0) return cudaSuccess;
  if constexpr (sizeof(Stored) == 1) {
    return histogram_by<Stored, Rule::codes>(args, first_uncounted, stream);
  } else {
    const auto by = args.binning.edges != nullptr ? histogram_by<Stored, Rule::edges>
                    : args.binning.clip           ? histogram_by<Stored, Rule::clipped>
                                                  : histogram_by<Stored, Rule::uniform>;
    return by(args, first_uncounted, stream);
  }
}

#define SIMMIM_INSTANTIATE(Stored) \
  template int histogram_cuda(const HistogramArgs<Stored>&, int64_t*, void*);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)
SIMMIM_INSTANTIATE(uint8_t)

}  // namespace simmim

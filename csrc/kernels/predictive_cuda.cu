#include <algorithm>
#include <cmath>

#include "launch.cuh"
#include "predictive.h"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr size_t kScratchBytes = kWarps * sizeof(double);
constexpr size_t kHeldBytes = 64 * 1024;  // of shared memory, so that three blocks have some
constexpr int64_t kMostBlocks = 512;

// A sample is worked on by a team: a thread, a warp or, where classes are so many that each team's
// own sums of p(y|x) would not fit shared memory, the block.

// Doubles from a team's sums, of each class and of the entropies, to the next one's. Odd, so that
// teams of one thread meet in no bank.
__host__ __device__ inline int64_t team_stride(int64_t classes) { return (classes + 1) | 1; }

size_t held_bytes(int members, int64_t classes) {
  return kThreads / members * static_cast<size_t>(team_stride(classes)) * sizeof(double);
}

int members_of(int64_t classes) {
  for (const int members : {1, kWarpLanes}) {
    if (held_bytes(members, classes) <= kHeldBytes) return members;
  }
  return kThreads;
}

int64_t sum_blocks(int64_t samples, int64_t classes) {
  constexpr int64_t kLeastBlocks = 64, kMostValues = 1 << 22;
  return std::min(ceil_div(samples, kThreads / members_of(classes)),
                  std::clamp(kMostValues / classes, kLeastBlocks, kMostBlocks));
}

int64_t marginal_blocks(int64_t classes) {
  return std::min(ceil_div(classes, int64_t{kThreads}), kMostBlocks);
}

struct Larger {  // or NaN
  __device__ double operator()(double a, double b) const { return a != a || a > b ? a : b; }
};

// Over a team, all of whose threads call and get the same.
template <int members, typename Add = Plus>
__device__ double team_total(double value, const Add& add = {}) {
  if (members == kThreads) return block_total(value, shared_memory<double>(), add);
  return warp_total(value, members, add);
}

// A block adds up p(y|x) = softmax(logits) and H(p(y|x)) of its share of the samples, its teams in
// turns; see predictive_cpu.cpp. sums [blocks, classes + 1], the last of each row the entropies'.
template <typename Scalar, int members>
__global__ void __launch_bounds__(kThreads, 2)
    predictive_sums_kernel(PredictiveInformationArgs<Scalar> args, double* sums,
                           int64_t* first_fault) {
  constexpr int kTeams = kThreads / members;
  const int64_t block = blockIdx.x, blocks = gridDim.x, columns = args.classes + 1;
  const int team = threadIdx.x / members, member = threadIdx.x % members;
  double* const result = sums + block * columns;
  double* const held = shared_memory<double>();
  double* const own = kTeams == 1 ? result : held + team * team_stride(args.classes);
  for (int64_t c = member; c < args.classes; c += members) own[c] = 0;
  double entropy = 0;
  const int64_t end = args.samples * (block + 1) / blocks;
  for (int64_t sample = args.samples * block / blocks + team; sample < end; sample += kTeams) {
    const Scalar* row = args.logits + sample * args.classes;
    double largest = -INFINITY;
    for (int64_t c = member; c < args.classes; c += members) {
      largest = Larger()(static_cast<double>(row[c]), largest);
      if (largest != largest) break;
    }
    largest = team_total<members>(largest, Larger());
    if (!(largest - largest == 0)) {  // NaN, +inf, or no finite logit at all
      if (member == 0) report_fault(first_fault, sample);
      entropy = NAN;
      break;
    }
    double weights = 0, weighted = 0;
    for (int64_t c = member; c < args.classes; c += members) {
      const double shifted = static_cast<double>(row[c]) - largest, weight = exp(shifted);
      weights += weight;
      if (weight > 0) weighted += weight * shifted;
    }
    weights = team_total<members>(weights);
    weighted = team_total<members>(weighted);
    for (int64_t c = member; c < args.classes; c += members) {
      own[c] += exp(static_cast<double>(row[c]) - largest) / weights;
    }
    entropy += log(weights) - weighted / weights;
  }
  if (member == 0) own[args.classes] = entropy;
  if (kTeams == 1) return;
  __syncthreads();
  for (int64_t column = threadIdx.x / kWarpLanes; column < columns; column += kWarps) {
    double sum = 0;
    for (int t = threadIdx.x % kWarpLanes; t < kTeams; t += kWarpLanes) {
      sum += held[t * team_stride(args.classes) + column];
    }
    sum = warp_total(sum);
    if (threadIdx.x % kWarpLanes == 0) result[column] = sum;
  }
}

// The mean over samples of what a column has the sums of; a warp calls.
__device__ double mean_of(const double* sums, int64_t blocks, int64_t columns, int64_t column,
                          double samples) {
  double sum = 0;
  for (int64_t block = threadIdx.x % kWarpLanes; block < blocks; block += kWarpLanes) {
    sum += sums[block * columns + column];
  }
  return warp_total(sum) / samples;
}

// Every block's share of H(mean p(y|x)), a class to a warp.
__global__ void __launch_bounds__(kThreads, 2)
    predictive_marginal_kernel(const double* sums, int64_t blocks, int64_t classes, double samples,
                               double* shares) {
  wait_for_previous();
  double share = 0;
  for (int64_t c = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarpLanes; c < classes;
       c += gridDim.x * int64_t{kWarps}) {
    const double p = mean_of(sums, blocks, classes + 1, c, samples);
    if (p > 0) share -= p * log(p);
  }
  share = block_total(threadIdx.x % kWarpLanes == 0 ? share : 0, shared_memory<double>());
  if (threadIdx.x == 0) shares[blockIdx.x] = share;
}

// One warp: H(mean p(y|x)) - mean H(p(y|x)).
__global__ void __launch_bounds__(kWarpLanes)
    predictive_information_kernel(const double* sums, int64_t blocks, int64_t classes,
                                  double samples, const double* shares, int64_t share_count,
                                  double nats_per_unit, float* result) {
  wait_for_previous();
  const double marginal = mean_of(shares, share_count, 1, 0, 1);
  const double conditional = mean_of(sums, blocks, classes + 1, classes, samples);
  const double nats = marginal - conditional;
  if (threadIdx.x == 0) *result = static_cast<float>((nats < 0 ? 0 : nats) / nats_per_unit);
}

template <typename Scalar>
int launch_sums(const PredictiveInformationArgs<Scalar>& args, int64_t blocks, double* sums,
                int64_t* first_fault, void* stream) {
  const auto launch_teams = [&](auto kernel, size_t shared_bytes) {
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared_bytes, stream,
                  args, sums, first_fault);
  };
  switch (members_of(args.classes)) {
    case 1:
      return launch_teams(predictive_sums_kernel<Scalar, 1>, held_bytes(1, args.classes));
    case kWarpLanes:
      return launch_teams(predictive_sums_kernel<Scalar, kWarpLanes>,
                          held_bytes(kWarpLanes, args.classes));
    default:
      return launch_teams(predictive_sums_kernel<Scalar, kThreads>, kScratchBytes);
  }
}

}  // namespace

int64_t predictive_scratch_cuda(int64_t samples, int64_t classes) {
  return sum_blocks(samples, classes) * (classes + 1) + marginal_blocks(classes);
}

template <typename Scalar>
int predictive_information_cuda(const PredictiveInformationArgs<Scalar>& args, double nats_per_unit,
                                double* scratch, float* result, int64_t* first_fault,
                                void* stream) {
  const int64_t blocks = sum_blocks(args.samples, args.classes);
  const int64_t share_count = marginal_blocks(args.classes);
  const double* sums = scratch;
  double* shares = scratch + blocks * (args.classes + 1);
  const auto samples = static_cast<double>(args.samples);
  int error = launch_sums(args, blocks, scratch, first_fault, stream);
  if (error != cudaSuccess) return error;
  error = launch_early(predictive_marginal_kernel, dim3(static_cast<unsigned>(share_count)),
                       dim3(kThreads), kScratchBytes, stream, sums, blocks, args.classes, samples,
                       shares);
  if (error != cudaSuccess) return error;
  return launch_early(predictive_information_kernel, dim3(1), dim3(kWarpLanes), 0, stream, sums,
                      blocks, args.classes, samples, static_cast<const double*>(shares),
                      share_count, nats_per_unit, result);
}

template int predictive_information_cuda(const PredictiveInformationArgs<float>&, double, double*,
                                         float*, int64_t*, void*);
template int predictive_information_cuda(const PredictiveInformationArgs<double>&, double, double*,
                                         float*, int64_t*, void*);

}  // namespace simmim

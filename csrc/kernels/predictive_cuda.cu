#include <algorithm>
#include <cmath>

#include "launch.cuh"
#include "predictive.h"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr size_t kScratchBytes = kThreads / kWarpLanes * sizeof(double);

template <typename T>
__device__ T total(T value) {
  return block_total(value, shared_memory<T>());
}

// NaN where a value is; all threads of the block call and get the same.
__device__ double block_maximum(double value) {
  double* scratch = shared_memory<double>();
  const auto larger = [](double a, double b) { return a != a || a > b ? a : b; };
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value = larger(value, __shfl_xor_sync(~0u, value, lanes));
  }
  __syncthreads();
  if (threadIdx.x % kWarpLanes == 0) scratch[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  double largest = scratch[0];
  for (int warp = 1; warp < kThreads / kWarpLanes; ++warp) largest = larger(largest, scratch[warp]);
  return largest;
}

// A block adds up p(y|x) = softmax(logits) and H(p(y|x)) of one part of the samples, in order; see
// predictive_cpu.cpp. sums [parts, classes + 1], the last of each row the entropies'.
template <typename Scalar>
__global__ void __launch_bounds__(kThreads, 2)
    predictive_sums_kernel(PredictiveInformationArgs<Scalar> args, double* sums,
                           int64_t* first_fault) {
  const int64_t part = blockIdx.x, parts = gridDim.x;
  double* own = sums + part * (args.classes + 1);
  for (int64_t c = threadIdx.x; c < args.classes; c += kThreads) own[c] = 0;
  double entropy = 0;
  for (int64_t sample = args.samples * part / parts; sample < args.samples * (part + 1) / parts;
       ++sample) {
    const Scalar* row = args.logits + sample * args.classes;
    double largest = -INFINITY;
    for (int64_t c = threadIdx.x; c < args.classes; c += kThreads) {
      const double logit = static_cast<double>(row[c]);
      if (logit != logit || logit > largest) largest = logit;
      if (largest != largest) break;
    }
    largest = block_maximum(largest);
    if (!(largest - largest == 0)) {  // NaN, +inf, or no finite logit at all
      if (threadIdx.x == 0) report_fault(first_fault, sample);
      entropy = NAN;
      break;
    }
    double weights = 0, weighted = 0;
    for (int64_t c = threadIdx.x; c < args.classes; c += kThreads) {
      const double shifted = static_cast<double>(row[c]) - largest, weight = exp(shifted);
      weights += weight;
      if (weight > 0) weighted += weight * shifted;
    }
    weights = total(weights);
    weighted = total(weighted);
    for (int64_t c = threadIdx.x; c < args.classes; c += kThreads) {
      own[c] += exp(static_cast<double>(row[c]) - largest) / weights;
    }
    entropy += log(weights) - weighted / weights;
  }
  if (threadIdx.x == 0) own[args.classes] = entropy;
}

// One block: the parts added up in order.
__global__ void __launch_bounds__(kThreads, 2)
    predictive_information_kernel(const double* sums, int64_t parts, int64_t classes,
                                  double samples, double nats_per_unit, float* result) {
  const auto sum_of = [&](int64_t column) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * (classes + 1) + column];
    return sum / samples;
  };
  double marginal = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
    const double p = sum_of(c);
    if (p > 0) marginal -= p * log(p);
  }
  marginal = total(marginal);
  if (threadIdx.x != 0) return;
  const double nats = marginal - sum_of(classes);
  *result = static_cast<float>((nats < 0 ? 0 : nats) / nats_per_unit);
}

}  // namespace

int64_t predictive_parts_cuda(int64_t samples, int64_t classes) {
  constexpr int64_t kMostParts = 512, kLeastParts = 64, kMostValues = 1 << 22;
  return std::min(samples, std::clamp(kMostValues / classes, kLeastParts, kMostParts));
}

template <typename Scalar>
int predictive_information_cuda(const PredictiveInformationArgs<Scalar>& args, double nats_per_unit,
                                double* scratch, float* result, int64_t* first_fault,
                                void* stream) {
  const int64_t parts = predictive_parts_cuda(args.samples, args.classes);
  const int error = launch(predictive_sums_kernel<Scalar>, dim3(static_cast<unsigned>(parts)),
                           dim3(kThreads), kScratchBytes, stream, args, scratch, first_fault);
  if (error != cudaSuccess) return error;
  const double* sums = scratch;
  return launch(predictive_information_kernel, dim3(1), dim3(kThreads), kScratchBytes, stream, sums,
                parts, args.classes, static_cast<double>(args.samples), nats_per_unit, result);
}

template int predictive_information_cuda(const PredictiveInformationArgs<float>&, double, double*,
                                         float*, int64_t*, void*);
template int predictive_information_cuda(const PredictiveInformationArgs<double>&, double, double*,
                                         float*, int64_t*, void*);

}  // namespace simmim

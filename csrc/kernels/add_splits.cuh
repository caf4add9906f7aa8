// The last step of products whose columns several blocks shared.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "rounding.cuh"

namespace simmim {

constexpr int kSplitThreads = 256;

// y[batch, out_features] = the sum of partial[splits, batch, out_features], always in the same
// order, + bias[out_features], or null.
template <typename Stored>
__global__ void __launch_bounds__(kSplitThreads)
    add_splits_kernel(const float* partial, int64_t splits, const Stored* bias, Stored* y,
                      int64_t outputs, int64_t out_features) {
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * kSplitThreads + threadIdx.x;
  if (i >= outputs) return;
  float sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * outputs + i];
  if (bias != nullptr) sum += static_cast<float>(bias[i % out_features]);
  y[i] = rounded<Stored>(sum);
}

template <typename Stored>
int add_splits(const float* partial, int64_t splits, const Stored* bias, Stored* y, int64_t batch,
               int64_t out_features, void* stream) {
  const int64_t outputs = batch * out_features;
  const dim3 blocks(static_cast<unsigned>(ceil_div(outputs, kSplitThreads)));
  return launch_early(add_splits_kernel<Stored>, blocks, dim3(kSplitThreads), 0, stream, partial,
                      splits, bias, y, outputs, out_features);
}

}  // namespace simmim

#include "launch.cuh"
#include "masked_linear.h"
#include "rounding.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kRows = 4;  // of the weight that a thread takes at once, so that x is read less often

// A warp makes all outputs of kRows rows, its lanes side by side along the rows.
template <typename Stored, int kVector>
__global__ void __launch_bounds__(kThreads) masked_linear_kernel(MaskedLinearArgs<Stored> args) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes) * kRows;
  if (first >= args.out_features) return;
  // Where there are fewer rows, the last is taken again and again.
  int64_t rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows[r] = first + r < args.out_features ? first + r : args.out_features - 1;
  }
  float sums[kRows][kSkinnyBatch] = {};
  for (int64_t column = lane * kVector; column < args.in_features; column += kWarpLanes * kVector) {
    Vector<Stored, kVector> weights[kRows];
    Vector<uint8_t, kVector> kept[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      weights[r] = load<kVector>(args.weight + rows[r] * args.in_features + column);
      kept[r] = load<kVector>(args.mask + rows[r] * args.in_features + column);
    }
#pragma unroll
    for (int b = 0; b < kSkinnyBatch; ++b) {
      if (b >= args.batch) break;
      const auto x = load<kVector>(args.x + b * args.in_features + column);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if (kept[r][i]) sums[r][b] += static_cast<float>(weights[r][i]) * float(x[i]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float bias = args.bias == nullptr ? 0.0f : static_cast<float>(args.bias[rows[r]]);
#pragma unroll
    for (int b = 0; b < kSkinnyBatch; ++b) {
      if (b >= args.batch) break;
      const float sum = warp_total(sums[r][b]);
      if (lane == 0) args.y[b * args.out_features + rows[r]] = rounded<Stored>(sum + bias);
    }
  }
}

// A thread makes kVector neighbours of kRows rows.
template <typename Stored, int kVector>
__global__ void __launch_bounds__(kThreads)
    masked_outer_kernel(MaskedOuterArgs<Stored> args, int64_t column_blocks) {
  const int64_t column = (blockIdx.x % column_blocks * kThreads + threadIdx.x) * kVector;
  const int64_t first = blockIdx.x / column_blocks * kRows;
  if (column >= args.in_features) return;
  float sums[kRows][kVector] = {};
  for (int64_t b = 0; b < args.batch; ++b) {
    const auto x = load<kVector>(args.x + b * args.in_features + column);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= args.out_features) break;
      const float grad = static_cast<float>(args.grad[b * args.out_features + first + r]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[r][i] += grad * static_cast<float>(x[i]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (first + r >= args.out_features) break;
    const int64_t at = (first + r) * args.in_features + column;
    const auto kept = load<kVector>(args.mask + at);
    Vector<Stored, kVector> product;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      product.values[i] = rounded<Stored>(kept[i] ? sums[r][i] : 0.0f);
    }
    store(product, args.product + at);
  }
}

template <typename Stored>
constexpr int kVectorOf = 16 / sizeof(Stored);

template <typename Stored, int kVector>
int launch_outer(const MaskedOuterArgs<Stored>& args, void* stream) {
  const int64_t column_blocks = ceil_div(args.in_features, kThreads * kVector);
  const dim3 grid(static_cast<unsigned>(column_blocks * ceil_div(args.out_features, kRows)));
  return launch(masked_outer_kernel<Stored, kVector>, grid, dim3(kThreads), 0, stream, args,
                column_blocks);
}

}  // namespace

template <typename Stored>
int masked_linear_cuda(const MaskedLinearArgs<Stored>& args, void* stream) {
  if (args.batch == 0 || args.out_features == 0) return cudaSuccess;
  constexpr int kVector = kVectorOf<Stored>;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.out_features, kWarps * kRows)));
  const bool whole = fits_vectors<kVector>(args.x, args.in_features) &&
                     fits_vectors<kVector>(args.weight, args.in_features) &&
                     fits_vectors<kVector>(args.mask, args.in_features);
  return launch(whole ? masked_linear_kernel<Stored, kVector> : masked_linear_kernel<Stored, 1>,
                grid, dim3(kThreads), 0, stream, args);
}

template <typename Stored>
int masked_outer_cuda(const MaskedOuterArgs<Stored>& args, void* stream) {
  if (args.out_features == 0 || args.in_features == 0) return cudaSuccess;
  constexpr int kVector = kVectorOf<Stored>;
  const bool whole = fits_vectors<kVector>(args.x, args.in_features) &&
                     fits_vectors<kVector>(args.mask, args.in_features) &&
                     fits_vectors<kVector>(args.product, args.in_features);
  return whole ? launch_outer<Stored, kVector>(args, stream)
               : launch_outer<Stored, 1>(args, stream);
}

#define SIMMIM_INSTANTIATE(Stored)                                         \
  template int masked_linear_cuda(const MaskedLinearArgs<Stored>&, void*); \
  template int masked_outer_cuda(const MaskedOuterArgs<Stored>&, void*);
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

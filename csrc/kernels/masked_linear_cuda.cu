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

using Sums = float[kRows][kSkinnyBatch];

// The weights of a lane's columns.
template <typename Stored, int kVector>
struct Weights {
  Vector<Stored, kVector> values[kRows];
  Vector<uint8_t, kVector> kept[kRows];

  __device__ __forceinline__ void load_at(const MaskedLinearArgs<Stored>& args,
                                          const int64_t (&rows)[kRows], int64_t column) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      values[r] = load<kVector>(args.weight + rows[r] * args.in_features + column);
      kept[r] = load<kVector>(args.mask + rows[r] * args.in_features + column);
    }
  }
};

// Sums of a lane's products. Masked weights are 0, which makes NaN of an infinity or NaN of x.
template <typename Stored, int kVector>
__device__ __forceinline__ void add_products(const MaskedLinearArgs<Stored>& args,
                                             const int64_t (&rows)[kRows], Sums& sums) {
  constexpr int64_t kStep = kWarpLanes * kVector;
  int64_t column = threadIdx.x % kWarpLanes * kVector;
  Weights<Stored, kVector> next;
  if (column < args.in_features) next.load_at(args, rows, column);
  for (; column < args.in_features; column += kStep) {
    float weights[kRows][kVector];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        weights[r][i] = next.kept[r][i] ? static_cast<float>(next.values[r][i]) : 0;
      }
    }
    if (column + kStep < args.in_features) next.load_at(args, rows, column + kStep);
#pragma unroll
    for (int b = 0; b < kSkinnyBatch; ++b) {
      if (b >= args.batch) break;
      const auto x = load<kVector>(args.x + b * args.in_features + column);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const auto value = static_cast<float>(x[i]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r][b] += weights[r][i] * value;
      }
    }
  }
}

// The same of kept weights alone, in the same order, and several times as slow.
template <typename Stored, int kVector>
__device__ __forceinline__ void add_kept(const MaskedLinearArgs<Stored>& args,
                                         const int64_t (&rows)[kRows], Sums& sums) {
  constexpr int64_t kStep = kWarpLanes * kVector;
  for (int64_t first = threadIdx.x % kWarpLanes * kVector; first < args.in_features;
       first += kStep) {
#pragma unroll 1
    for (int64_t column = first; column < first + kVector; ++column) {
      Weights<Stored, 1> weights;
      weights.load_at(args, rows, column);
#pragma unroll
      for (int b = 0; b < kSkinnyBatch; ++b) {
        if (b >= args.batch) break;
        const auto value = static_cast<float>(args.x[b * args.in_features + column]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (weights.kept[r][0]) sums[r][b] += static_cast<float>(weights.values[r][0]) * value;
        }
      }
    }
  }
}

// A warp makes all outputs of kRows rows, its lanes side by side along the rows.
template <typename Stored, int kVector>
__global__ void __launch_bounds__(kThreads, 1) masked_linear_kernel(MaskedLinearArgs<Stored> args) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes) * kRows;
  if (first >= args.out_features) return;
  // Where there are fewer rows, the last is taken again and again.
  int64_t rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows[r] = first + r < args.out_features ? first + r : args.out_features - 1;
  }
  Sums sums = {};
  add_products<Stored, kVector>(args, rows, sums);
  bool special = false;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kSkinnyBatch; ++b) special |= !(sums[r][b] - sums[r][b] == 0);
  }
  if (__any_sync(~0u, special)) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int b = 0; b < kSkinnyBatch; ++b) sums[r][b] = 0;
    }
    add_kept<Stored, kVector>(args, rows, sums);
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

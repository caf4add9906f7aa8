#include <algorithm>
#include <cmath>

#include "add_splits.cuh"
#include "launch.cuh"
#include "rounding.cuh"
#include "row_linear.h"
#include "row_sums.cuh"

namespace simmim {
namespace {

constexpr int kTileWeights = kTileSteps * kStepWeights;
constexpr int kMostWarps = 16, kLeastWarps = 4;  // of a block
// An H100's multiprocessors, one for each block: more blocks would fetch x more often.
constexpr int64_t kBlocks = 132;

// Rows go in turn to the warps of all blocks; every group of samples is by itself.
struct Plan {
  int64_t row_blocks, groups;
  int warps;

  Plan(const PackedRows& shape, int64_t batch, int samples) : groups(ceil_div(batch, samples)) {
    warps = kMostWarps;
    while (warps > kLeastWarps && shape.out_features <= kBlocks * warps / 2) warps /= 2;
    row_blocks = std::min(ceil_div(shape.out_features, warps), kBlocks);
  }
};

// Samples [count] of columns [first, first + slots - 1) to shared memory, 0 where there are none.
template <typename Stored, int kPlanes>
__device__ __forceinline__ void stage(const RowLinearArgs<Stored>& args, int64_t first_sample,
                                      int64_t first, int slots) {
  constexpr int kCount = kPlaneSamples<Stored>;
  const int64_t left = args.batch - first_sample;
  const Stored* x = args.x + first_sample * args.columns + first;
  auto* shared = shared_memory<Vector<Stored, kCount>>();
  for (int plane = 0; plane < kPlanes; ++plane) {
    Vector<Stored, kCount>* target = shared + plane * slots;
    for (int column = 2 * threadIdx.x; column < slots - 1; column += 2 * blockDim.x) {
      Vector<Stored, kCount> low, high;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int sample = plane * kCount + i;
        Vector<Stored, 2> pair = {};
        if (sample < left) pair = load<2>(x + sample * args.columns + column);
        low.values[i] = pair[0];
        high.values[i] = pair[1];
      }
      target[slot_of(column)] = low;
      target[slot_of(column + 1)] = high;
    }
    if (threadIdx.x == 0) target[slots - 1] = {};
  }
}

// The blocks of the lists of this warp's rows, one after the other; a list without weights has one.
template <typename Stored>
class BlockStream {
 public:
  __device__ BlockStream(const RowLinearArgs<Stored>& args, int64_t row, int64_t step)
      : packed_(static_cast<const unsigned char*>(args.packed)),
        lists_(reinterpret_cast<const RowList*>(packed_ + kRowUnit) +
               blockIdx.y * args.shape.out_features),
        rows_(args.shape.out_features),
        step_(step),
        row_(row) {
    const int64_t* sizes = reinterpret_cast<const int64_t*>(packed_);
    fits_ = sizes[0] == rows_ && sizes[1] == args.shape.in_features;
    look_up();
    open();
  }
  __device__ bool fits() const { return fits_; }

  template <typename Block>
  __device__ __forceinline__ void fetch(Block& block) {
    block.load(place_);
    place_.begin += block_bytes(kBlockSteps, sizeof(Stored));
    place_.left -= kBlockWeights;
    if (place_.left <= 0) open();
  }

 private:
  // The next list is known before its blocks are asked for.
  __device__ __forceinline__ void look_up() {
    upcoming_ = {0, 0};
    if (fits_ && row_ < rows_) upcoming_ = lists_[row_];
    row_ += step_;
  }
  __device__ __forceinline__ void open() {
    place_ = {packed_ + int64_t{upcoming_.first_unit} * kRowUnit, upcoming_.kept};
    look_up();
  }

  const unsigned char* packed_;
  const RowList* lists_;
  int64_t rows_, step_, row_;
  RowList upcoming_;
  BlockPlace place_;
  bool fits_;
};

// partial [chunks, batch, out_features] takes the sums, or, where it is null, y does.
template <typename Stored, int kPlanes>
__global__ void __launch_bounds__(kMostWarps* kWarpLanes, 1)
    row_linear_kernel(RowLinearArgs<Stored> args, Plan plan, int slots, float* partial) {
  using Sums = RowSums<Stored, kPlanes>;
  const PackedRows& shape = args.shape;
  const int64_t first_sample = blockIdx.x / plan.row_blocks * Sums::kSamples;
  const int64_t warps = plan.row_blocks * plan.warps;
  int64_t row = blockIdx.x % plan.row_blocks * plan.warps + threadIdx.x / kWarpLanes;
  // Two blocks are always on their way, the first while x is staged.
  BlockStream<Stored> stream(args, row, warps);
  typename Sums::Block block, next;
  stream.fetch(block);
  stream.fetch(next);
  const int64_t first = int64_t{blockIdx.y} * kChunkColumns, beyond = args.columns - first;
  if (beyond < slots - 1) slots = static_cast<int>(beyond) + 1;
  stage<Stored, kPlanes>(args, first_sample, first, slots);
  __syncthreads();

  const auto* x = shared_memory<const uint4>();
  const int lane = threadIdx.x % kWarpLanes;
  for (; row < shape.out_features; row += warps) {
    Sums sums;
    int left;
#pragma unroll 1
    do {
      typename Sums::Block later;
      stream.fetch(later);
      left = block.left;
#pragma unroll
      for (int tile = 0; tile < kBlockSteps / kTileSteps; ++tile) {
        if (tile * kTileWeights >= left) break;
        const uint4* columns[kTileSteps];
#pragma unroll
        for (int step = 0; step < kTileSteps; ++step) {
          const bool kept = tile * kTileWeights + step * kStepWeights + lane < left;
          columns[step] = x + (kept ? block.codes[tile * kTileSteps + step] : slots - 1);
        }
        sums.add(block, tile, columns, slots);
      }
      block = next;
      next = later;
    } while (left > kBlockWeights);

    const float sum = stream.fits() ? sums.total() : NAN;
    const int64_t sample = first_sample + Sums::sample();
    if (Sums::sample() >= Sums::kSamples || sample >= args.batch) continue;
    const int64_t at = sample * shape.out_features + row;
    if (partial != nullptr) {
      partial[blockIdx.y * args.batch * shape.out_features + at] = sum;
    } else {
      const float bias = args.bias == nullptr ? 0.0f : static_cast<float>(args.bias[row]);
      args.y[at] = rounded<Stored>(sum + bias);
    }
  }
}

// Units of shared memory that a plane takes: one for each column, and one of zeros.
template <typename Stored>
int plane_slots(const RowLinearArgs<Stored>& args) {
  return static_cast<int>(std::min<int64_t>(args.columns, kChunkColumns)) + 1;
}

template <int kPlanes, typename Stored>
int launch_product(const RowLinearArgs<Stored>& args, float* partial, void* stream) {
  const Plan plan(args.shape, args.batch, RowSums<Stored, kPlanes>::kSamples);
  const int slots = plane_slots(args);
  const dim3 grid(static_cast<unsigned>(plan.row_blocks * plan.groups),
                  static_cast<unsigned>(args.shape.chunks()));
  return launch(row_linear_kernel<Stored, kPlanes>, grid, dim3(plan.warps * kWarpLanes),
                size_t{kRowUnit} * kPlanes * slots, stream, args, plan, slots, partial);
}

}  // namespace

template <typename Stored>
int64_t row_linear_scratch(const RowLinearArgs<Stored>& args) {
  const int64_t chunks = args.shape.chunks();
  return chunks > 1 ? chunks * args.batch * args.shape.out_features : 0;
}

template <typename Stored>
int row_linear_cuda(const RowLinearArgs<Stored>& args, float* scratch, void* stream) {
  if (args.batch == 0 || args.shape.out_features == 0) return cudaSuccess;
  float* partial = args.shape.chunks() > 1 ? scratch : nullptr;
  const bool two =
      args.batch > kPlaneSamples<Stored> && can_share(2 * kRowUnit * plane_slots(args));
  const int error =
      two ? launch_product<2>(args, partial, stream) : launch_product<1>(args, partial, stream);
  if (error != cudaSuccess || partial == nullptr) return error;
  return add_splits<Stored>(partial, args.shape.chunks(), args.bias, args.y, args.batch,
                            args.shape.out_features, stream);
}

#define SIMMIM_INSTANTIATE(Stored)                                   \
  template int64_t row_linear_scratch(const RowLinearArgs<Stored>&); \
  template int row_linear_cuda(const RowLinearArgs<Stored>&, float*, void*);
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

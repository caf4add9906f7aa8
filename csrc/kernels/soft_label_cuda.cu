#include "soft_label.cuh"
#include "tensor_core.cuh"

namespace simmim {
namespace {

constexpr int kPlacePieces = kBlockGroups * kGroupPieces;
template <int kDigits>
constexpr int kStagePieces = kDigits * kDigitPieces + kPlacePieces;
// Chunks in shared memory, of which all but one are on their way.
template <int kDigits>
constexpr int kStagesOf = kDigits < 5 ? 4 : 3;
template <int kDigits>
constexpr size_t kSharedBytes = kStagesOf<kDigits> * kStagePieces<kDigits> * sizeof(uint4);
static_assert(kSharedBytes<4> <= kLeastShared && kSharedBytes<5> <= kLeastShared);
static_assert(kDigitPieces % kSoftThreads == 0 && kPlacePieces % kSoftThreads == 0);

__device__ __forceinline__ uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// A chunk of the warp's groups. `table` has a 1 at the place of the lane's column.
template <int kDigits>
__device__ __forceinline__ void add_chunk(const uint4* stage, int warp, int lane, uint2 table,
                                          int32_t (&sums)[kWarpGroups][kDigits][4]) {
  const uint4* places = stage + kDigits * kDigitPieces + warp * kWarpGroups * kGroupPieces;
  uint4 place[kWarpGroups];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step % 4 == 0) {
#pragma unroll
      for (int j = 0; j < kWarpGroups; ++j) place[j] = places[j * kGroupPieces + step + lane % 4];
    }
    uint4 digits[kDigits];
#pragma unroll
    for (int digit = 0; digit < kDigits; ++digit) {
      digits[digit] = stage[digit * kDigitPieces + step * kWarpLanes + lane];
    }
#pragma unroll
    for (int j = 0; j < kWarpGroups; ++j) {
      const uint32_t word = word_of(place[j], step % 4);
      const uint2 in_bin = make_uint2(bytes_at(table, word), bytes_at(table, word >> 16));
#pragma unroll
      for (int digit = 0; digit < kDigits; ++digit) {
        mma_bytes(sums[j][digit], digits[digit], in_bin);
      }
    }
  }
}

// sums [splits, rows * kGroupBins, tiles * kTileClasses] of integers, for 16 classes and 64 groups.
template <int kDigits>
__global__ void __launch_bounds__(kSoftThreads, 1)
    soft_sums_kernel(const uint4* digits, const uint4* places, int64_t chunks, int64_t tiles,
                     int64_t rows, double* sums) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int64_t tile = blockIdx.x, block_row = int64_t{blockIdx.y} * kBlockGroups;
  const int64_t padded_rows = int64_t{gridDim.y} * kBlockGroups;
  const int64_t row = block_row + warp * kWarpGroups;
  const int64_t first_chunk = chunks * blockIdx.z / gridDim.z;
  const auto count = static_cast<unsigned>(chunks * (blockIdx.z + 1) / gridDim.z - first_chunk);
  const int one = 8 * (lane / 4 % 4);
  const uint2 table = make_uint2(lane < 16 ? 1u << one : 0, lane < 16 ? 0 : 1u << one);

  // What this thread copies to shared memory next.
  const uint4* digit = digits + (first_chunk * tiles + tile) * kDigits * kDigitPieces + threadIdx.x;
  const uint4* place =
      places + (first_chunk * padded_rows + block_row) * kGroupPieces + threadIdx.x;
  constexpr int kStages = kStagesOf<kDigits>;
  uint4* stages = shared_memory<uint4>();
  const auto fetch = [&](unsigned chunk) {
    if (chunk < count) {
      uint4* stage = stages + chunk % kStages * kStagePieces<kDigits> + threadIdx.x;
#pragma unroll
      for (int i = 0; i < kDigits * kDigitPieces; i += kSoftThreads) {
        copy_async_16(stage + i, digit + i);
      }
#pragma unroll
      for (int i = 0; i < kPlacePieces; i += kSoftThreads) {
        copy_async_16(stage + kDigits * kDigitPieces + i, place + i);
      }
      digit += tiles * kDigits * kDigitPieces;
      place += padded_rows * kGroupPieces;
    }
    copy_async_commit();
  };
  int32_t counts[kWarpGroups][kDigits][4] = {};
  for (unsigned chunk = 0; chunk < kStages - 1; ++chunk) fetch(chunk);
  for (unsigned chunk = 0; chunk < count; ++chunk) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this chunk has arrived, and all are done with the one before
    const uint4* stage = stages + chunk % kStages * kStagePieces<kDigits>;
    if (row < rows) add_chunk<kDigits>(stage, warp, lane, table, counts);
    fetch(chunk + kStages - 1);
  }
  const int64_t classes = tiles * kTileClasses;
#pragma unroll
  for (int j = 0; j < kWarpGroups; ++j) {
    if (row + j >= rows) return;
    const int64_t column = (blockIdx.z * rows + row + j) * kGroupBins + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      double sum = 0;
#pragma unroll
      for (int digit = kDigits - 1; digit >= 0; --digit) sum = sum * 256 + counts[j][digit][i];
      sums[(column + i % 2) * classes + tile * kTileClasses + lane / 4 + i / 2 * 8] = sum;
    }
  }
}

// A block for each feature: a thread takes a class and goes through its bins.
__global__ void __launch_bounds__(kSoftThreads)
    soft_information_kernel(SoftLabelInformationArgs args, SoftPlan plan, const double* sums,
                            const int64_t* valid, const double* x_entropy) {
  const int64_t feature = blockIdx.x;
  const double scale = scale_of(plan.digits);
  const int64_t stride = plan.tiles * kTileClasses;
  const int64_t split_stride = args.features * plan.groups * kGroupBins * stride;
  double cells = 0, classes = 0;
  for (int64_t label = threadIdx.x; label < args.classes; label += kSoftThreads) {
    const double* of_class = sums + feature * plan.groups * kGroupBins * stride + label;
    double in_class = 0;
    for (int32_t bin = 0; bin < args.bins; ++bin) {
      double sum = 0;
      for (int64_t split = 0; split < plan.splits; ++split) {
        sum += of_class[split * split_stride + bin * stride];
      }
      cells += n_log_n(sum / scale);
      in_class += sum;
    }
    classes += n_log_n(in_class / scale);
  }
  cells = block_total(cells, shared_memory<double>());
  classes = block_total(classes, shared_memory<double>());
  if (threadIdx.x != 0) return;
  const double n = static_cast<double>(valid[feature]);
  const double y = log(n) - classes / n;
  const double joint = y - (cells - classes) / n;
  args.result[feature] =
      valid[feature] < 2 ? NAN : information(args.information, x_entropy[feature], y, joint);
}

template <int kDigits>
int soft_information(SoftLabelInformationArgs args, const SoftPlan& plan, const int64_t* valid,
                     const double* x_entropy, unsigned char* scratch, void* stream) {
  auto* digits = reinterpret_cast<uint4*>(scratch);
  auto* places = reinterpret_cast<uint32_t*>(scratch + plan.digit_bytes);
  auto* sums = reinterpret_cast<double*>(scratch + plan.digit_bytes + plan.place_bytes);
  const dim3 blocks(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.blocks),
                    static_cast<unsigned>(plan.splits));
  int error = pack_digits_cuda(args, plan, digits, stream);
  for (int64_t left = args.features; left > 0 && error == cudaSuccess; left -= plan.features) {
    args.features = std::min(plan.features, left);
    error = pack_places_cuda(args, plan, places, stream);
    if (error != cudaSuccess) break;
    error =
        launch(soft_sums_kernel<kDigits>, blocks, dim3(kSoftThreads), kSharedBytes<kDigits>, stream,
               static_cast<const uint4*>(digits), reinterpret_cast<const uint4*>(places),
               plan.chunks, plan.tiles, args.features * plan.groups, sums);
    if (error != cudaSuccess) break;
    error = launch(soft_information_kernel, dim3(static_cast<unsigned>(args.features)),
                   dim3(kSoftThreads), kSoftWarps * sizeof(double), stream, args, plan,
                   static_cast<const double*>(sums), valid, x_entropy);
    args.x += args.features * args.samples;
    args.result += args.features;
    valid += args.features;
    x_entropy += args.features;
  }
  return error;
}

}  // namespace

int64_t soft_label_scratch(const SoftLabelInformationArgs& args) {
  const SoftPlan plan(args);
  return plan.digit_bytes + plan.place_bytes + plan.sum_bytes;
}

int soft_label_information_cuda(const SoftLabelInformationArgs& args, const int64_t* valid,
                                const double* x_entropy, void* scratch, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const SoftPlan plan(args);
  const auto run = plan.digits == 3   ? soft_information<3>
                   : plan.digits == 4 ? soft_information<4>
                                      : soft_information<5>;
  return run(args, plan, valid, x_entropy, static_cast<unsigned char*>(scratch), stream);
}

}  // namespace simmim

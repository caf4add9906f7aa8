// Information about soft labels: probabilities become integers of a few bytes, and tensor cores
// multiply these by "sample s lies in bin b". Integers add up to the same in any order.
#include <algorithm>

#include "label.h"
#include "launch.cuh"
#include "tensor_core.cuh"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpLanes;
constexpr int kTileClasses = 16;  // of a block: the rows of a fragment
constexpr int kGroupBins = 8;     // of a feature: the columns of a fragment
constexpr int kWarpGroups = 8, kBlockGroups = kWarps * kWarpGroups;
constexpr int kChunkSamples = 256, kSteps = kChunkSamples / 32;  // of a fragment's 32 samples
constexpr int kStages = 4;  // chunks in shared memory, of which all but one on their way

constexpr int64_t kMostChunks = (int64_t{1} << 23) / kChunkSamples;  // 255 each fit 31 bits
constexpr int64_t kLeastChunks = 16;      // below, another block costs more than it brings
constexpr int64_t kBlocks = 132;          // an H100's multiprocessors, one for each block
constexpr int64_t kBatchBytes = 1 << 29;  // of scratch that grows with the features

constexpr int kFewestDigits = 3, kMostDigits = 5;

// The integer of a probability p is p S rounded down or up, S = 256^digits - 1, by a coin that
// falls so that its mean is p S. Then errors of the samples cancel, even where all have the same p:
// of n samples and C classes, information is off by about sqrt(C / n) / S, and by cells / (n S) at
// most for what the smallest p lose. With as many samples as cells, 3 digits make both 6e-8 nats.
int digits_for(const SoftLabelInformationArgs& args) {
  int digits = kFewestDigits;
  double cells = static_cast<double>(args.classes) * args.bins;
  for (; digits < kMostDigits && cells > static_cast<double>(args.samples); cells /= 256) ++digits;
  return digits;
}
SIMMIM_HD int64_t scale_of(int digits) { return (int64_t{1} << 8 * digits) - 1; }

// How the work is cut, and what lies where in the scratch.
struct Plan {
  int digits;
  int64_t chunks, tiles;  // of the samples and the classes
  int64_t groups;         // of a feature's bins
  int64_t features;       // at a time, whose groups fill so many blocks
  int64_t blocks;
  int64_t splits;  // of the chunks, whose sums are apart
  int64_t digit_bytes, place_bytes, sum_bytes;

  explicit Plan(const SoftLabelInformationArgs& args)
      : digits(digits_for(args)),
        chunks(std::max(ceil_div(args.samples, kChunkSamples), int64_t{1})),
        tiles(ceil_div(args.classes, kTileClasses)),
        groups(ceil_div(args.bins, kGroupBins)) {
    const int64_t group_places = chunks * kChunkSamples / 2;
    const int64_t group_sums = kGroupBins * tiles * kTileClasses * int64_t{sizeof(double)};
    const int64_t most = kBatchBytes / (groups * (group_places + group_sums));
    features = ceil_div(args.features, ceil_div(args.features, std::max(most, int64_t{1})));
    blocks = ceil_div(features * groups, kBlockGroups);
    const int64_t idle = std::min(kBlocks / (blocks * tiles), chunks / kLeastChunks);
    splits = std::max({int64_t{1}, idle, ceil_div(chunks, kMostChunks)});
    digit_bytes = chunks * kChunkSamples * tiles * kTileClasses * digits;
    place_bytes = blocks * kBlockGroups * group_places;
    sum_bytes = splits * features * groups * group_sums;
  }
};

// ----------------------------------------------------------------------------------------------
// packing

// Bits that look drawn at random.
__device__ __forceinline__ uint32_t scrambled(uint32_t bits) {
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  return bits ^ bits >> 16;
}

// In which order a chunk's samples are multiplied does not matter. Each quarter of a warp's lanes,
// t, takes 32 in a row of every 128, which are 16 bytes of places, and 8 of these in a step.
__device__ __forceinline__ int first_sample(int lane, int step) {
  return step / 4 * 128 + lane % 4 * 32 + step % 4 * 8;
}

// Fragments [chunks, tiles, digits, steps, lanes]: a warp takes a step of a chunk and a tile.
template <int kDigits>
__global__ void __launch_bounds__(kSteps* kWarpLanes)
    pack_digits_kernel(SoftLabelInformationArgs args, int64_t tiles, uint4* digits) {
  const int lane = threadIdx.x % kWarpLanes, step = threadIdx.x / kWarpLanes;
  const int64_t first_label = blockIdx.x % tiles * kTileClasses + lane / 4;
  const int64_t first = blockIdx.x / tiles * kChunkSamples + first_sample(lane, step);
  constexpr auto kScale = static_cast<double>((int64_t{1} << 8 * kDigits) - 1);
  uint32_t words[kDigits][4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int row = i / 8, half = i / 4 % 2, place = i % 4;
    const int64_t label = first_label + 8 * row, sample = first + i % 8;
    if (label >= args.classes || sample >= args.samples) continue;
    const int64_t index = sample * args.classes + label;
    const double coin =
        scrambled(static_cast<uint32_t>(index) ^ scrambled(static_cast<uint32_t>(index >> 32))) *
        0x1p-32;
    const double scaled = args.probabilities[index] * kScale + coin;
    const auto integer = static_cast<uint64_t>(scaled < kScale ? scaled : kScale);
#pragma unroll
    for (int digit = 0; digit < kDigits; ++digit) {
      words[digit][row + 2 * half] |= static_cast<uint32_t>(integer >> 8 * digit & 255)
                                      << 8 * place;
    }
  }
#pragma unroll
  for (int digit = 0; digit < kDigits; ++digit) {
    const uint32_t (&w)[4] = words[digit];
    digits[((int64_t{blockIdx.x} * kDigits + digit) * kSteps + step) * kWarpLanes + lane] =
        make_uint4(w[0], w[1], w[2], w[3]);
  }
}

// The place of a sample's bin among the 8 of a group, or 8: 4 bits for each sample, [chunks, rows,
// kChunkSamples], with a row for each group. A thread takes 8 samples of a feature.
__global__ void __launch_bounds__(kThreads)
    pack_places_kernel(const uint8_t* codes, int64_t features, int64_t samples, int64_t groups,
                       int64_t chunks, int64_t rows, uint32_t* places) {
  constexpr int kWordSamples = 8, kWords = kChunkSamples / kWordSamples;
  const int64_t work = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t word = work % (chunks * kWords), feature = work / (chunks * kWords);
  if (feature * groups >= rows) return;
  uint32_t code[kWordSamples];
#pragma unroll
  for (int i = 0; i < kWordSamples; ++i) {
    const int64_t sample = word * kWordSamples + i;
    code[i] = feature < features && sample < samples ? codes[feature * samples + sample]
                                                     : uint32_t{1} << 16;  // no bin
  }
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row = feature * groups + group;
    if (row >= rows) return;
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kWordSamples; ++i) {
      const uint32_t place = code[i] - static_cast<uint32_t>(group) * kGroupBins;
      packed |= (place < kGroupBins ? place : kGroupBins) << 4 * i;
    }
    places[(word / kWords * rows + row) * kWords + word % kWords] = packed;
  }
}

// ----------------------------------------------------------------------------------------------
// sums

template <int kDigits>
constexpr int kDigitPieces = kDigits * kSteps * kWarpLanes;  // of 16 bytes, of a chunk
constexpr int kGroupPieces = kChunkSamples / 32;             // of a group's places
template <int kDigits>
constexpr int kStagePieces = kDigitPieces<kDigits> + kBlockGroups * kGroupPieces;
static_assert(kDigitPieces<1> % kThreads == 0 && kBlockGroups * kGroupPieces % kThreads == 0);

__device__ __forceinline__ uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// A chunk of the warp's groups. `table` has a 1 at the place of the lane's column.
template <int kDigits>
__device__ __forceinline__ void add_chunk(const uint4* stage, int warp, int lane, uint2 table,
                                          int32_t (&sums)[kWarpGroups][kDigits][4]) {
  const uint4* places = stage + kDigitPieces<kDigits> + warp * kWarpGroups * kGroupPieces;
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
      digits[digit] = stage[(digit * kSteps + step) * kWarpLanes + lane];
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
__global__ void __launch_bounds__(kThreads, 1)
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
  const uint4* digit = digits + (first_chunk * tiles + tile) * kDigitPieces<kDigits> + threadIdx.x;
  const uint4* place =
      places + (first_chunk * padded_rows + block_row) * kGroupPieces + threadIdx.x;
  uint4* stages = shared_memory<uint4>();
  const auto fetch = [&](unsigned chunk) {
    if (chunk < count) {
      uint4* stage = stages + chunk % kStages * kStagePieces<kDigits> + threadIdx.x;
#pragma unroll
      for (int i = 0; i < kDigitPieces<kDigits>; i += kThreads) {
        copy_async_16(stage + i, digit + i);
      }
#pragma unroll
      for (int i = 0; i < kBlockGroups * kGroupPieces; i += kThreads) {
        copy_async_16(stage + kDigitPieces<kDigits> + i, place + i);
      }
      digit += tiles * kDigitPieces<kDigits>;
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

// ----------------------------------------------------------------------------------------------
// information

// A block for each feature: a thread takes a class and goes through its bins.
__global__ void __launch_bounds__(kThreads)
    soft_information_kernel(SoftLabelInformationArgs args, Plan plan, const double* sums,
                            const int64_t* valid, const double* x_entropy) {
  const int64_t feature = blockIdx.x;
  const auto scale = static_cast<double>(scale_of(plan.digits));
  const int64_t stride = plan.tiles * kTileClasses;
  const int64_t split_stride = args.features * plan.groups * kGroupBins * stride;
  double cells = 0, classes = 0;
  for (int64_t label = threadIdx.x; label < args.classes; label += kThreads) {
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
int soft_information(SoftLabelInformationArgs args, const Plan& plan, const int64_t* valid,
                     const double* x_entropy, unsigned char* scratch, void* stream) {
  auto* digits = reinterpret_cast<uint4*>(scratch);
  auto* places = reinterpret_cast<uint32_t*>(scratch + plan.digit_bytes);
  auto* sums = reinterpret_cast<double*>(scratch + plan.digit_bytes + plan.place_bytes);
  int error =
      launch(pack_digits_kernel<kDigits>, dim3(static_cast<unsigned>(plan.chunks * plan.tiles)),
             dim3(kSteps * kWarpLanes), 0, stream, args, plan.tiles, digits);
  const int64_t padded_rows = plan.blocks * kBlockGroups;
  const int64_t pack_work = ceil_div(padded_rows, plan.groups) * plan.chunks * kGroupPieces * 4;
  const dim3 pack_blocks(static_cast<unsigned>(ceil_div(pack_work, kThreads)));
  const dim3 sum_blocks(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.blocks),
                        static_cast<unsigned>(plan.splits));
  const int64_t features = args.features;
  for (int64_t first = 0; first < features && error == cudaSuccess; first += plan.features) {
    args.features = std::min(plan.features, features - first);
    error = launch(pack_places_kernel, pack_blocks, dim3(kThreads), 0, stream,
                   args.x + first * args.samples, args.features, args.samples, plan.groups,
                   plan.chunks, padded_rows, places);
    if (error != cudaSuccess) break;
    error = launch(soft_sums_kernel<kDigits>, sum_blocks, dim3(kThreads),
                   kStages * kStagePieces<kDigits> * sizeof(uint4), stream,
                   static_cast<const uint4*>(digits), reinterpret_cast<const uint4*>(places),
                   plan.chunks, plan.tiles, args.features * plan.groups, sums);
    if (error != cudaSuccess) break;
    SoftLabelInformationArgs batch = args;
    batch.result = args.result + first;
    error = launch(soft_information_kernel, dim3(static_cast<unsigned>(args.features)),
                   dim3(kThreads), kWarps * sizeof(double), stream, batch, plan,
                   static_cast<const double*>(sums), valid + first, x_entropy + first);
  }
  return error;
}

}  // namespace

int64_t soft_label_scratch(const SoftLabelInformationArgs& args) {
  const Plan plan(args);
  return plan.digit_bytes + plan.place_bytes + plan.sum_bytes;
}

int soft_label_information_cuda(const SoftLabelInformationArgs& args, const int64_t* valid,
                                const double* x_entropy, void* scratch, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const Plan plan(args);
  const auto run = plan.digits == 3   ? soft_information<3>
                   : plan.digits == 4 ? soft_information<4>
                                      : soft_information<5>;
  return run(args, plan, valid, x_entropy, static_cast<unsigned char*>(scratch), stream);
}

}  // namespace simmim

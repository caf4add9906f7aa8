#include "soft_label.cuh"

namespace simmim {
namespace {

// What looks drawn at random from [0, 1).
__device__ __forceinline__ double coin(int64_t index) {
  const auto scrambled = [](uint32_t bits) {
    bits = (bits ^ bits >> 16) * 0x7feb352du;
    bits = (bits ^ bits >> 15) * 0x846ca68bu;
    return bits ^ bits >> 16;
  };
  const uint32_t high = scrambled(static_cast<uint32_t>(index >> 32));
  return scrambled(static_cast<uint32_t>(index) ^ high) * 0x1p-32;
}

// A warp takes a step of a chunk and a tile, lane 4 g + t its 8 samples of the classes g and g + 8.
__global__ void __launch_bounds__(kDigitPieces)
    pack_digits_kernel(SoftLabelInformationArgs args, int digits, int64_t chunks, uint4* out) {
  const int lane = threadIdx.x % kWarpLanes, step = threadIdx.x / kWarpLanes;
  const int64_t first_label = int64_t{blockIdx.x} * kTileClasses + lane / 4;
  const double scale = scale_of(digits);
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    const int64_t first = chunk * kChunkSamples + first_sample(lane, step);
    uint64_t integers[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int64_t label = first_label + i / 8 * 8, sample = first + i % 8;
      const int64_t index = sample * args.classes + label;
      const bool inside = label < args.classes && sample < args.samples;
      const double scaled = (inside ? args.probabilities[index] : 0) * scale + coin(index);
      integers[i] = static_cast<uint64_t>(scaled < scale ? scaled : scale);
    }
    uint4* to = out + (chunk * gridDim.x + blockIdx.x) * digits * kDigitPieces + threadIdx.x;
    for (int digit = 0; digit < digits; ++digit, to += kDigitPieces) {
      uint32_t words[4] = {};  // samples 0 to 3 of both classes, then samples 4 to 7
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        words[i / 8 + i / 4 % 2 * 2] |= static_cast<uint32_t>(integers[i] & 255) << i % 4 * 8;
        integers[i] >>= 8;
      }
      *to = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

constexpr int kWordSamples = 8, kWords = kChunkSamples / kWordSamples;  // of a chunk's row

// A thread takes 8 samples of a feature.
__global__ void __launch_bounds__(kSoftThreads)
    pack_places_kernel(SoftLabelInformationArgs args, int64_t chunks, int64_t groups, int64_t rows,
                       uint32_t* places) {
  const int64_t word = int64_t{blockIdx.x} * kSoftThreads + threadIdx.x;
  if (word >= chunks * kWords) return;
  for (int64_t feature = blockIdx.y; feature * groups < rows; feature += gridDim.y) {
    uint32_t code[kWordSamples];
#pragma unroll
    for (int i = 0; i < kWordSamples; ++i) {
      const int64_t sample = word * kWordSamples + i;
      const bool inside = feature < args.features && sample < args.samples;
      code[i] = inside ? args.x[feature * args.samples + sample] : uint32_t{1} << 16;  // no bin
    }
    for (int64_t group = 0; group < groups && feature * groups + group < rows; ++group) {
      uint32_t packed = 0;
#pragma unroll
      for (int i = 0; i < kWordSamples; ++i) {
        const uint32_t place = code[i] - static_cast<uint32_t>(group) * kGroupBins;
        packed |= (place < kGroupBins ? place : kGroupBins) << 4 * i;
      }
      const int64_t row = feature * groups + group;
      places[(word / kWords * rows + row) * kWords + word % kWords] = packed;
    }
  }
}

// Along y, whose blocks stride over what lies beyond.
dim3 grid(int64_t x, int64_t y) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(std::min<int64_t>(y, 65535)));
}

}  // namespace

int pack_digits_cuda(const SoftLabelInformationArgs& args, const SoftPlan& plan, uint4* digits,
                     void* stream) {
  return launch(pack_digits_kernel, grid(plan.tiles, plan.chunks), dim3(kDigitPieces), 0, stream,
                args, plan.digits, plan.chunks, digits);
}

int pack_places_cuda(const SoftLabelInformationArgs& args, const SoftPlan& plan, uint32_t* places,
                     void* stream) {
  const int64_t blocks = ceil_div(plan.chunks * kWords, kSoftThreads);
  return launch(pack_places_kernel, grid(blocks, ceil_div(plan.rows(), plan.groups)),
                dim3(kSoftThreads), 0, stream, args, plan.chunks, plan.groups, plan.rows(), places);
}

}  // namespace simmim

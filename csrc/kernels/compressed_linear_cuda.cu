#include <algorithm>

#include "compressed_linear.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the work beyond
static_assert(kSegmentWeights == kWarpLanes * 32);

__global__ void __launch_bounds__(kThreads) pack_bits_kernel(PackBitsArgs args, int64_t bytes) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t byte = int64_t{blockIdx.x} * kThreads + threadIdx.x; byte < bytes; byte += stride) {
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) {
      if (8 * byte + i < args.weights && args.mask[8 * byte + i]) bits |= 1u << i;
    }
    args.bitmap[byte] = static_cast<uint8_t>(bits);
  }
}

// The lane's 32 bits of a segment, 0 beyond the last weight.
__device__ __forceinline__ uint32_t segment_word(const uint8_t* bitmap, int64_t weights,
                                                 int64_t segment, int lane) {
  const int64_t first = segment * kSegmentWeights + 32 * lane;
  uint32_t word = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const int64_t left = weights - (first + 8 * byte);
    if (left <= 0) break;
    const uint32_t bits = bitmap[first / 8 + byte];
    word |= (left < 8 ? bits & ((1u << left) - 1) : bits) << (8 * byte);
  }
  return word;
}

// A warp takes a segment.
__global__ void __launch_bounds__(kThreads)
    count_segments_kernel(const uint8_t* bitmap, int64_t weights, int64_t segments, int64_t* kept) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  for (int64_t segment = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
       segment < segments; segment += stride) {
    const int count = warp_total(__popc(segment_word(bitmap, weights, segment, lane)));
    if (lane == 0) kept[segment] = count;
  }
}

// A warp takes a segment, and 32 neighbours at a time, so that it writes whole lines.
template <typename Item>
__global__ void __launch_bounds__(kThreads)
    decompress_segments_kernel(DecompressSegmentsArgs args, int64_t segments) {
  const int lane = threadIdx.x % kWarpLanes;
  const auto* values = static_cast<const Item*>(args.values);
  const bool fits = *args.bits_set == args.kept;
  constexpr Item kNan = static_cast<Item>(~Item{0});  // of any floating type
  auto* out = static_cast<Item*>(args.weights_out);
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  for (int64_t segment = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
       segment < segments; segment += stride) {
    const uint32_t mine = segment_word(args.bitmap, args.weights, segment, lane);
    int64_t value = args.first_value[segment];
    for (int word = 0; word < kWarpLanes; ++word) {
      const uint32_t bits = __shfl_sync(~0u, mine, word);
      const int64_t i = segment * kSegmentWeights + 32 * word + lane;
      const int64_t at = value + __popc(bits & ((1u << lane) - 1));
      const bool kept = bits >> lane & 1;
      if (i < args.weights) out[i] = !fits ? kNan : kept ? values[at] : Item{0};
      value += __popc(bits);
    }
  }
}

dim3 blocks_of(int64_t work, int64_t per_block) {
  return dim3(static_cast<unsigned>(std::min(ceil_div(work, per_block), kMaxBlocks)));
}

}  // namespace

int pack_bits_cuda(const PackBitsArgs& args, void* stream) {
  const int64_t bytes = bitmap_bytes(args.weights);
  if (bytes == 0) return cudaSuccess;
  return launch(pack_bits_kernel, blocks_of(bytes, kThreads), dim3(kThreads), 0, stream, args,
                bytes);
}

int count_segments_cuda(const uint8_t* bitmap, int64_t weights, int64_t* kept, void* stream) {
  const int64_t segments = ceil_div(weights, kSegmentWeights);
  if (segments == 0) return cudaSuccess;
  return launch(count_segments_kernel, blocks_of(segments, kWarps), dim3(kThreads), 0, stream,
                bitmap, weights, segments, kept);
}

int decompress_segments_cuda(const DecompressSegmentsArgs& args, void* stream) {
  const int64_t segments = ceil_div(args.weights, kSegmentWeights);
  if (segments == 0) return cudaSuccess;
  const auto kernel = args.item_size == 2   ? decompress_segments_kernel<uint16_t>
                      : args.item_size == 4 ? decompress_segments_kernel<uint32_t>
                                            : decompress_segments_kernel<uint64_t>;
  return launch(kernel, blocks_of(segments, kWarps), dim3(kThreads), 0, stream, args, segments);
}

}  // namespace simmim

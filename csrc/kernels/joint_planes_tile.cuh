// A tile of pairs of planes, as a block counts it, chunk by chunk.
#pragma once

#include "joint_planes.cuh"
#include "tensor_core.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {

constexpr int kWarpTile = 64;  // planes of x and of y of which a warp counts all conjunctions
constexpr int kTileWarps = (kTilePlanes / kWarpTile) * (kTilePlanes / kWarpTile);
constexpr int kTileThreads = kTileWarps * kWarpLanes;
constexpr int kRowFragments = kWarpTile / 16, kColumnFragments = kWarpTile / 8;

// How often each two planes of a warp meet, as its lanes hold the products.
using PlaneCounts = int32_t[kRowFragments][kColumnFragments][4];

// Shared memory has the planes of a chunk in fragments of 16, those of x before those of y. What
// lane 4 g + t of a warp needs of a fragment for one product is one piece: two words of each of the
// planes g and g + 8, for x word by word, for y plane by plane, as the instruction takes them.
constexpr int kPieceWords = 4;
using Piece = Vector<uint32_t, kPieceWords>;
constexpr int kSteps = kChunkSamples / 256;  // products
constexpr int kTileFragments = kTilePlanes / 16;
// Pieces of two steps. What eight neighbouring threads store at once, pieces of the steps 0 and 2
// (or 1 and 3), lies in different banks.
constexpr int kHalf = 2 * kWarpLanes + 4;
constexpr int kFragmentPieces = kSteps / 2 * kHalf;
constexpr int kStagePieces = 2 * kTileFragments * kFragmentPieces;
__device__ constexpr int step_at(int step) { return step / 2 * kHalf + step % 2 * kWarpLanes; }

// Of eight planes of bins those words whose samples `group` lets pass.
__device__ __forceinline__ void eight_planes(uint32_t group, uint32_t bit0, uint32_t bit1,
                                             uint32_t bit2, uint32_t (&planes)[8]) {
#pragma unroll
  for (int high = 0; high < 4; ++high) {
    const uint32_t two = group & (high & 1 ? bit1 : ~bit1) & (high & 2 ? bit2 : ~bit2);
    planes[2 * high] = two & ~bit0;
    planes[2 * high + 1] = two & bit0;
  }
}

// What a thread brings from memory to shared memory: 128 samples of a fragment.
template <int kPlanes>
class FragmentLoader {
 public:
  // The fragments of a tile whose first feature is `x` on the one side and `y` on the other.
  __device__ FragmentLoader(const CodedPlanes& x_planes, const CodedPlanes& y_planes, int64_t x,
                            int64_t y)
      : of_x_(threadIdx.x < kTileThreads / 2) {
    const CodedPlanes& planes = of_x_ ? x_planes : y_planes;
    const int part = threadIdx.x % kParts, fragment = threadIdx.x / kParts % kTileFragments;
    const int64_t feature = (of_x_ ? x : y) + fragment * 16 / kPlanes;
    next_ = reinterpret_cast<const Piece*>(planes.words) + feature * kCoded * kParts + part;
    stride_ = planes.features * kCoded * kParts;
    group_at_ = fragment * 16 % kPlanes / 8 * kParts;
    target_ = threadIdx.x / kParts * kFragmentPieces + step_at(part / 4 * 2) + part % 4;
  }

  // From the first chunk on, one after the other.
  __device__ __forceinline__ void load_next() {
#pragma unroll
    for (int half = 0; half < 2; ++half) group_[half] = next_[group_at_ + half * kNextGroup];
#pragma unroll
    for (int feature = 0; feature < kFeatures; ++feature) {
#pragma unroll
      for (int bit = 0; bit < 3; ++bit) {
        bits_[feature][bit] = next_[(feature * kCoded + kGroups + bit) * kParts];
      }
    }
    next_ += stride_;
  }

  // Which words of a chunk make a product does not matter, as long as x and y agree.
  __device__ __forceinline__ void store(Piece* stage) const {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t planes[2][2][8];  // of each word and half
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int word = 2 * step + i / 2, half = i % 2;
        const Piece(&bits)[3] = bits_[half % kFeatures];
        eight_planes(group_[half][word], bits[0][word], bits[1][word], bits[2][word],
                     planes[i / 2][half]);
      }
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        const uint32_t across = planes[0][1][g], down = planes[1][0][g];
        stage[target_ + step * kWarpLanes + 4 * g] = {planes[0][0][g], of_x_ ? across : down,
                                                      of_x_ ? down : across, planes[1][1][g]};
      }
    }
  }

 private:
  static constexpr int kParts = kChunkWords / kPieceWords;  // of a chunk, a piece of each plane
  static constexpr int kGroups = kPlanes / 8, kCoded = kGroups + 3;
  static constexpr int kFeatures = kPlanes < 16 ? 2 : 1;  // whose planes make a fragment
  static constexpr int kNextGroup = (kPlanes < 16 ? kCoded : 1) * kParts;
  static_assert(kTileThreads == 2 * kTileFragments * kParts);

  const bool of_x_;
  const Piece* next_;  // the coded planes of the first feature
  int64_t stride_;     // from chunk to chunk
  int group_at_;       // the first plane of a group of eight bins
  int target_;
  Piece group_[2];
  Piece bits_[kFeatures][3];
};

// The conjunctions of one chunk, added to the warp's counts.
__device__ __forceinline__ void count_chunk(const Piece* stage, int warp_row, int warp_column,
                                            PlaneCounts& counts) {
  const int lane = threadIdx.x % kWarpLanes;
  const Piece* rows = stage + warp_row / 16 * kFragmentPieces + lane;
  const Piece* columns = stage + (kTileFragments + warp_column / 16) * kFragmentPieces + lane;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    Piece a[kRowFragments];
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) a[i] = rows[i * kFragmentPieces + step_at(step)];
#pragma unroll
    for (int j = 0; j < kColumnFragments; j += 2) {
      const Piece b = columns[j / 2 * kFragmentPieces + step_at(step)];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        mma_and_popc(counts[i][j], a[i].values, b[0], b[1]);
        mma_and_popc(counts[i][j + 1], a[i].values, b[2], b[3]);
      }
    }
  }
}

}  // namespace simmim

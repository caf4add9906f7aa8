// Information about soft labels on tensor cores: probabilities become integers of a few bytes, and
// these are multiplied by "sample s lies in bin b". Integers add up to the same in any order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "label.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {

constexpr int kSoftThreads = 256, kSoftWarps = kSoftThreads / kWarpLanes;
constexpr int kTileClasses = 16;  // of a block: the rows of a fragment
constexpr int kGroupBins = 8;     // of a feature: the columns of a fragment
constexpr int kWarpGroups = 8, kBlockGroups = kSoftWarps * kWarpGroups;
constexpr int kChunkSamples = 256, kSteps = kChunkSamples / 32;  // of a fragment's 32 samples

// In pieces of 16 bytes: what a chunk has of a tile's classes for one digit, and of a group.
constexpr int kDigitPieces = kSteps * kWarpLanes, kGroupPieces = kChunkSamples / 32;

constexpr int64_t kMostChunks = (int64_t{1} << 23) / kChunkSamples;  // 255 each fit 31 bits
constexpr int64_t kLeastChunks = 16;      // below, another block costs more than it brings
constexpr int64_t kSoftBlocks = 132;      // an H100's multiprocessors, one for each block
constexpr int64_t kBatchBytes = 1 << 29;  // of scratch that grows with the features

// The integer of a probability p is p S rounded up or down, S = 256^digits - 1, by a coin that
// falls so that its mean is p S. Then the errors of samples cancel, even where all have the same p:
// of n samples and C classes, information is off by some sqrt(C / n) / S, and by cells / (n S) at
// most for what the smallest p lose. 3 digits keep it to 1e-7 nats or so where there are as many
// samples as cells; each more, where there are 256 times as many cells.
inline int digits_for(const SoftLabelInformationArgs& args) {
  constexpr int kFewest = 3, kMost = 5;
  int digits = kFewest;
  double cells = static_cast<double>(args.classes) * args.bins;
  for (; digits < kMost && cells > static_cast<double>(args.samples); cells /= 256) ++digits;
  return digits;
}
SIMMIM_HD double scale_of(int digits) {
  return static_cast<double>((int64_t{1} << 8 * digits) - 1);
}

// How the work is cut, and the bytes of its parts.
struct SoftPlan {
  int digits;
  int64_t chunks, tiles;     // of the samples and the classes
  int64_t groups;            // of a feature's bins
  int64_t features, blocks;  // at a time, and the blocks that their groups fill
  int64_t splits;            // of the chunks, whose sums are apart
  int64_t digit_bytes, place_bytes, sum_bytes;

  explicit SoftPlan(const SoftLabelInformationArgs& args)
      : digits(digits_for(args)),
        chunks(std::max(ceil_div(args.samples, kChunkSamples), int64_t{1})),
        tiles(ceil_div(args.classes, kTileClasses)),
        groups(ceil_div(args.bins, kGroupBins)) {
    const int64_t group_places = chunks * kChunkSamples / 2;
    const int64_t group_sums = kGroupBins * tiles * kTileClasses * int64_t{sizeof(double)};
    const int64_t most = kBatchBytes / (groups * (group_places + group_sums));
    features = ceil_div(args.features, ceil_div(args.features, std::max(most, int64_t{1})));
    blocks = ceil_div(features * groups, kBlockGroups);
    const int64_t idle = std::min(kSoftBlocks / (blocks * tiles), chunks / kLeastChunks);
    splits = std::max({int64_t{1}, idle, ceil_div(chunks, kMostChunks)});
    digit_bytes = chunks * kChunkSamples * tiles * kTileClasses * digits;
    place_bytes = blocks * kBlockGroups * group_places;
    sum_bytes = splits * features * groups * group_sums;
  }
  int64_t rows() const { return blocks * kBlockGroups; }  // of places
};

// In which order a chunk's samples are multiplied does not matter. The lanes 4 g + t of a warp take
// 32 in a row of every 128, 8 of them in each step.
__device__ __forceinline__ int first_sample(int lane, int step) {
  return step / 4 * 128 + lane % 4 * 32 + step % 4 * 8;
}

// Digits as fragments [chunks, tiles, digits, steps, lanes] of 16 bytes.
int pack_digits_cuda(const SoftLabelInformationArgs& args, const SoftPlan& plan, uint4* digits,
                     void* stream);
// The place of a sample's bin among the 8 of a group, or 8: 4 bits for each sample, [chunks, rows,
// kChunkSamples], with a row for each group of args.features <= plan.features.
int pack_places_cuda(const SoftLabelInformationArgs& args, const SoftPlan& plan, uint32_t* places,
                     void* stream);

}  // namespace simmim

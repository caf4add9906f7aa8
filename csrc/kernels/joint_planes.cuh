// Joint counts of many pairs on tensor cores: the bits "sample s lies in bin b" of every feature
// and bin, a plane each, and for each two planes the population count of their conjunction.
#pragma once

#include "joint.h"

namespace simmim {

constexpr int kPlanesThreads = 256;
constexpr int kChunkSamples = 512;  // of a plane at a time: 16 words
constexpr int kChunkWords = kChunkSamples / 32;
constexpr int kRowTile = 256, kColumnTile = 128;  // planes of x and of y that a block takes
constexpr int kMaxPlaneBins = 32;

// The planes of a feature, some of them empty: so many that features fill whole tiles.
inline int planes_of_feature(int32_t bins) { return bins <= 8 ? 8 : bins <= 16 ? 16 : 32; }

// Bits of all features, [chunks, planes, kChunkWords]: a tile of planes lies together.
struct Planes {
  uint32_t* words;
  int64_t chunks;
  int64_t planes;  // a multiple of kRowTile
};
inline int64_t plane_count(int64_t features, int per_feature) {
  return (features * per_feature + kRowTile - 1) / kRowTile * kRowTile;
}
inline int64_t plane_words(int64_t planes, int64_t samples) {
  return (samples + kChunkSamples - 1) / kChunkSamples * planes * kChunkWords;
}

// Whether planes beat counters in shared memory: the work grows with the cells of a pair.
inline bool planes_pay(const CodePair& codes) {
  return codes.x_bins <= kMaxPlaneBins && codes.y_bins <= kMaxPlaneBins &&
         codes.samples < (int64_t{1} << 31);
}
// x and y get as many planes a feature, so that one kernel serves both.
inline int planes_of_pair(const CodePair& codes) {
  return planes_of_feature(codes.x_bins > codes.y_bins ? codes.x_bins : codes.y_bins);
}

int pairwise_planes_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                         int64_t* first_fault, void* stream);

}  // namespace simmim

// Joint counts of many pairs on tensor cores: the bits "sample s lies in bin b" of every feature
// and bin, a plane each, and for each two planes the population count of their conjunction.
//
// In memory a feature is coded in fewer planes: for each eight bins the samples that lie in them,
// and the three low bits of the codes. Blocks make the bins' planes of these.
#pragma once

#include "host_device.h"
#include "joint.h"

namespace simmim {

constexpr int kMaxPlaneBins = 32;
constexpr int kChunkSamples = 1024;  // of a plane at a time
constexpr int kChunkWords = kChunkSamples / 32;
constexpr int kTilePlanes = 128;  // of bins, of x and of y, that a block takes

// The planes of a feature's bins, some of them empty: so many that features fill whole tiles.
inline int planes_of_feature(int32_t bins) { return bins <= 8 ? 8 : bins <= 16 ? 16 : 32; }
// x and y get as many planes a feature, so that one kernel serves both.
inline int planes_of_pair(const CodePair& codes) {
  return planes_of_feature(codes.x_bins > codes.y_bins ? codes.x_bins : codes.y_bins);
}
SIMMIM_HD int coded_planes(int planes) { return planes / 8 + 3; }

// All features in coded planes, [chunks, features, coded_planes, kChunkWords].
struct CodedPlanes {
  uint32_t* words;
  int64_t chunks;
  int64_t features;  // of whole tiles
};
inline CodedPlanes coded(uint32_t* words, int64_t features, int64_t samples, int planes) {
  const int64_t tile = kTilePlanes / planes;
  return {words, (samples + kChunkSamples - 1) / kChunkSamples,
          (features + tile - 1) / tile * tile};
}
inline int64_t words_of(const CodedPlanes& all, int planes) {
  return all.chunks * all.features * coded_planes(planes) * kChunkWords;
}

// The order in which blocks take the tiles of pairs: band by band, a band being kBand rows of tiles
// that are taken column by column. So blocks that run together share rows and columns, which stay
// in the cache.
struct TileOrder {
  static constexpr int64_t kBand = 16;

  int64_t rows, columns;  // of tiles
  bool symmetric;         // as many of both, and nothing is wanted below the diagonal

  SIMMIM_HD int64_t bands() const { return (rows + kBand - 1) / kBand; }
  // Of a band; where symmetric, of the first and the last band together, of the second and the last
  // but one, and so on, for these are as many.
  SIMMIM_HD int64_t width() const {
    return symmetric ? 2 * columns - (bands() - 1) * kBand : columns;
  }
  SIMMIM_HD int64_t count() const {
    return (symmetric ? (bands() + 1) / 2 : bands()) * width() * kBand;
  }
  // Where the tile lies. False where there is none.
  SIMMIM_HD bool find(int64_t index, int64_t* row, int64_t* column) const {
    int64_t band = index / (width() * kBand);
    *column = index / kBand % width();
    if (symmetric) {
      const int64_t last = bands() - 1 - band;
      *column += band * kBand;
      if (*column >= columns) {
        if (last == band) return false;
        *column += last * kBand - columns;
        band = last;
      }
    }
    *row = band * kBand + index % kBand;
    return *row < rows && !(symmetric && *column < *row);
  }
};

// Whether planes beat counters in shared memory, on the current device.
bool planes_pay(const CodePair& codes);

int64_t pairwise_planes_words(const PairwiseInformationArgs& args);
int pairwise_planes_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                         int64_t* first_fault, void* stream);

}  // namespace simmim

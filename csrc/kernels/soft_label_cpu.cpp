// Information about soft labels, for a block of features and a tile of classes at a time.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu_capability.h"
#include "label.h"
#include "vectors.h"

#define SIMMIM_KERNEL "probability_tile.h"
#include "every_target.h"

namespace simmim {
namespace {

constexpr int kTileClasses = 32;
constexpr int64_t kTileSamples = 256;
constexpr int64_t kSumsBytes = int64_t{64} << 10;  // of a block of features, in the L2 cache

int64_t features_of_a_block(int32_t bins) {
  constexpr int64_t kRowBytes = kTileClasses * int64_t{sizeof(double)};
  return std::clamp<int64_t>(kSumsBytes / (bins * kRowBytes), 4, kSoftLabelFeatures);
}

// sums [features, bins, kClasses] of `classes` of the classes, from `first_class` on; 0 beyond.
template <int kClasses>
void sum_tile(const SoftLabelInformationArgs& args, int64_t first_feature, int64_t features,
              int64_t first_class, int64_t classes, double* sums) {
  std::fill_n(sums, features * args.bins * kClasses, 0.0);
  std::vector<double> padded(classes < kClasses ? kTileSamples * kClasses : 0);
  for (int64_t first = 0; first < args.samples; first += kTileSamples) {
    const int64_t samples = std::min(kTileSamples, args.samples - first);
    const double* p = args.probabilities + first * args.classes + first_class;
    int64_t p_stride = args.classes;
    if (!padded.empty()) {
      for (int64_t i = 0; i < samples; ++i) {
        std::copy_n(p + i * p_stride, classes, padded.data() + i * kClasses);
      }
      p = padded.data();
      p_stride = kClasses;
    }
    SIMMIM_BEST_TARGET(add_probabilities<kClasses>, p, p_stride, samples,
                       args.x + first_feature * args.samples + first, args.samples, features,
                       args.bins, sums);
  }
}

// What a feature's sums come to: sum of w ln w of the summed probabilities w [bins, classes] and of
// their sums over the bins.
struct Sums {
  double joint = 0, classes = 0;

  void add(const double* sums, int32_t bins, int width) {
    double in_class[kTileClasses] = {};
    for (int bin = 0; bin < bins; ++bin) {
      for (int c = 0; c < width; ++c) {
        in_class[c] += sums[bin * width + c];
        joint += n_log_n(sums[bin * width + c]);
      }
    }
    for (int c = 0; c < width; ++c) classes += n_log_n(in_class[c]);
  }
};

template <int kClasses>
void add_tile(const SoftLabelInformationArgs& args, int64_t first_feature, int64_t features,
              int64_t first_class, int64_t classes, double* scratch, Sums* sums) {
  sum_tile<kClasses>(args, first_feature, features, first_class, classes, scratch);
  for (int64_t f = 0; f < features; ++f) {
    sums[f].add(scratch + f * args.bins * kClasses, args.bins, kClasses);
  }
}

// H(X,Y) and H(Y) follow from the sums.
float result_of(const SoftLabelInformationArgs& args, int64_t feature, const Sums& sums) {
  const uint8_t* codes = args.x + feature * args.samples;
  int64_t counts[256] = {};
  for (int64_t i = 0; i < args.samples; ++i) ++counts[codes[i]];
  int64_t samples = 0;
  for (int bin = 0; bin < args.bins; ++bin) samples += counts[bin];
  const auto n = static_cast<double>(samples);
  const double x = entropy_of_counts(args.terms, samples, args.bins, counts, args.bins);
  const double y = std::log(n) - sums.classes / n;
  const double joint = y - (sums.joint - sums.classes) / n;
  return information(args.information, x, y, joint);
}

}  // namespace

// A feature's samples are added up in order, by one thread, and its tiles are the same wherever it
// stands: any split of the features over threads gives the same bits.
void soft_label_information_cpu(const SoftLabelInformationArgs& args, int64_t feature_begin,
                                int64_t feature_end) {
  const int64_t block = std::min(features_of_a_block(args.bins), feature_end - feature_begin);
  std::vector<double> scratch(static_cast<size_t>(block * args.bins * kTileClasses));
  for (int64_t first = feature_begin; first < feature_end; first += block) {
    const int64_t features = std::min(block, feature_end - first);
    Sums sums[kSoftLabelFeatures];
    for (int64_t c = 0; c < args.classes; c += kTileClasses) {
      const int64_t classes = std::min<int64_t>(kTileClasses, args.classes - c);
      const auto add = classes <= 8    ? &add_tile<8>
                       : classes <= 16 ? &add_tile<16>
                                       : &add_tile<kTileClasses>;
      add(args, first, features, c, classes, scratch.data(), sums);
    }
    for (int64_t f = 0; f < features; ++f) {
      args.result[first + f] = result_of(args, first + f, sums[f]);
    }
  }
}

}  // namespace simmim

#include <algorithm>

#include "discretize.h"

namespace simmim {

// Rows in, columns out: through a tile that stays in the L1 cache.
template <typename Stored>
int64_t discretize_cpu(const DiscretizeArgs<Stored>& args, int64_t feature_begin,
                       int64_t feature_end, int64_t sample_begin, int64_t sample_end) {
  uint8_t tile[kTile][kTile];  // [samples, features]
  int64_t without_bin = 0;
  for (int64_t first = feature_begin; first < feature_end; first += kTile) {
    const int64_t features = std::min(kTile, feature_end - first);
    for (int64_t begin = sample_begin; begin < sample_end; begin += kTile) {
      const int64_t samples = std::min(kTile, sample_end - begin);
      for (int64_t s = 0; s < samples; ++s) {
        const Stored* row = args.x + (begin + s) * args.sample_stride + first * args.feature_stride;
        for (int64_t f = 0; f < features; ++f) {
          const int32_t bin = stored_bin(row[f * args.feature_stride], args.binning, first + f);
          without_bin += bin == kNoBin;
          tile[s][f] = static_cast<uint8_t>(bin);  // kNoBin becomes kInvalidCode
        }
      }
      for (int64_t f = 0; f < features; ++f) {
        uint8_t* codes = args.codes + (first + f) * args.samples + begin;
        for (int64_t s = 0; s < samples; ++s) codes[s] = tile[s][f];
      }
    }
  }
  return without_bin;
}

#define SIMMIM_INSTANTIATE(Stored)                                                          \
  template int64_t discretize_cpu(const DiscretizeArgs<Stored>&, int64_t, int64_t, int64_t, \
                                  int64_t);
SIMMIM_INSTANTIATE(double)
SIMMIM_INSTANTIATE(float)
SIMMIM_INSTANTIATE(Half)
SIMMIM_INSTANTIATE(BFloat16)

}  // namespace simmim

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_capability.h"
#include "float_vector.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#define SIMMIM_KERNEL "sparse_linear_element.h"
#include "every_target.h"

namespace simmim {

void element_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  SIMMIM_BEST_TARGET(element_linear, args, begin, end);
}

// Larger tiles take less time for each sample, but may be half empty.
int64_t element_lanes_cpu(int64_t batch) {
  struct Tile {
    int64_t lanes;
    double time;
  };
  constexpr Tile kSpreading[] = {{32, 1.8}, {16, 1.0}};
  constexpr Tile kBroadcasting[] = {{64, 2.75}, {32, 1.45}, {16, 1.0}};
  const auto fastest = [batch](const auto& tiles) {
    const auto time = [batch](const Tile& tile) {
      return static_cast<double>(divide_up(batch, tile.lanes)) * tile.time;
    };
    return std::min_element(std::begin(tiles), std::end(tiles),
                            [&](const Tile& a, const Tile& b) { return time(a) < time(b); })
        ->lanes;
  };
  return is_intel_server() ? fastest(kBroadcasting) : fastest(kSpreading);
}

}  // namespace simmim

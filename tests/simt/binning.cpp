// Ranges and edges made ready on the device, emulated, against the CPU's arithmetic.
#include "../../csrc/kernels/binning.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"

namespace {

constexpr int64_t kNone = INT64_MAX;

// Whose low is that of feature 0 where `shared`, and which are good but where they say otherwise.
template <typename Compute>
void check_scales(int64_t features, bool shared, int64_t bad, int64_t narrow) {
  std::vector<double> low(features), high(features);
  for (int64_t f = 0; f < features; ++f) {
    low[f] = shared ? -1.1 : -1.1 * static_cast<double>(f);
    high[f] = f % 5 == 1 ? low[f] : 0.3 * static_cast<double>(f + 1);
  }
  constexpr double kMost = std::numeric_limits<Compute>::max();
  for (int64_t f = std::max<int64_t>(narrow, 0); narrow >= 0 && f < features; f += 7) {
    low[f] = -kMost;
    high[f] = kMost;
  }
  for (int64_t f = std::max<int64_t>(bad, 0); bad >= 0 && f < features; f += 9) {
    high[f] = f % 2 == 0 ? -2000 : f % 3 == 0 ? INFINITY : NAN;
  }
  std::vector<Compute> bounds(3 * features, -9);
  int64_t first_bad = kNone, first_narrow = kNone;
  const int error = simmim::scale_cuda<Compute>(
      {low.data(), high.data(), shared ? 0 : 1, 1, features, 16, bounds.data()}, &first_bad,
      &first_narrow, nullptr);
  bool good = error == 0 && first_bad == (bad < 0 ? kNone : bad) &&
              first_narrow == (narrow < 0 ? kNone : narrow);
  for (int64_t f = 0; f < features; ++f) {
    const Compute l = static_cast<Compute>(low[shared ? 0 : f]), h = static_cast<Compute>(high[f]);
    const Compute scale = l == h ? 0 : 16 / (h - l);
    const bool usable = l <= h && std::isfinite(h - l) && std::isfinite(scale);
    good &= usable
                ? bounds[f] == l && bounds[features + f] == h && bounds[2 * features + f] == scale
                : std::isnan(bounds[f]);
  }
  simt::check(good, "scales: features=%ld shared=%d bad=%ld narrow=%ld bytes=%zu", features, shared,
              bad, narrow, sizeof(Compute));
}

void check_edges(int64_t rows, int64_t columns, int64_t infinite, int64_t descending) {
  std::vector<double> edges(rows * columns);
  for (int64_t i = 0; i < rows * columns; ++i) edges[i] = static_cast<double>(i % columns / 2);
  for (int64_t i = std::max<int64_t>(infinite, 0); infinite >= 0 && i < rows * columns; i += 11) {
    edges[i] = i % 2 == 0 ? NAN : INFINITY;
  }
  if (descending >= 0) edges[descending] = -1;
  int64_t first_infinite = kNone, first_descending = kNone;
  const int error = simmim::check_edges_cuda(edges.data(), rows, columns, &first_infinite,
                                             &first_descending, nullptr);
  simt::check(error == 0 && first_infinite == (infinite < 0 ? kNone : infinite) &&
                  (infinite >= 0 || first_descending == (descending < 0 ? kNone : descending)),
              "edges: rows=%ld columns=%ld infinite=%ld descending=%ld", rows, columns, infinite,
              descending);
}

}  // namespace

int main() {
  for (const int64_t features : {1, 255, 600}) {
    check_scales<float>(features, false, -1, -1);
    check_scales<double>(features, true, -1, -1);
  }
  check_scales<float>(600, false, 400, -1);
  check_scales<float>(600, false, -1, 300);
  check_scales<double>(600, false, 255, 40);
  check_edges(1, 3, -1, -1);
  check_edges(5, 257, -1, -1);
  check_edges(5, 257, 700, -1);
  check_edges(5, 257, -1, 900);
  check_edges(1, 3, -1, 2);
  return simt::finish("binning");
}

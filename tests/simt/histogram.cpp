// histogram_cuda, emulated, against histogram_cpu: same arguments, same counts.
#include "../../csrc/kernels/histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "values.h"

namespace {

// Where x lies in memory: `samples` is contiguous along samples, else it is along features; rows
// are so many values longer than they need be, x begins so many values late, and neighbours are so
// many values apart.
struct Layout {
  bool samples;
  int64_t padding, offset, apart;
};

enum Bins { uniform, clipped, shared_edges, own_edges, clipped_edges };

// Ranges differ from feature to feature: some are empty, of some (NaN) nothing is counted, and zero
// has either sign.
template <typename Compute>
struct Ranges {
  std::vector<Compute> low, high, scale;
  std::vector<double> edges;

  Ranges(int64_t features, int bins) {
    for (int64_t f = 0; f < features; ++f) {
      low.push_back(f % 7 == 3 ? Compute(-0.5) : f % 7 == 4 ? Compute(0) : Compute(-1));
      high.push_back(f % 7 == 3 ? low[f] : Compute(1));
      scale.push_back(low[f] < high[f] ? Compute(bins) / (high[f] - low[f]) : Compute(0));
      for (int i = 0; i <= bins; ++i) {
        edges.push_back(double(low[f]) +
                        (double(high[f]) - double(low[f])) * std::sqrt(double(i) / bins));
      }
      if (f % 7 == 5) low[f] = std::numeric_limits<Compute>::quiet_NaN();
    }
  }
};

template <typename Stored, typename Make>
void check_counts(int64_t samples, int64_t features, int bins, const Layout& layout, Bins kind,
                  const Make& make) {
  const int64_t rows = layout.samples ? features : samples;
  const int64_t length = (layout.samples ? samples : features) * layout.apart + layout.padding;
  std::mt19937 random(static_cast<unsigned>(samples * 31 + features));
  std::vector<Stored> x(layout.offset + rows * length - layout.padding);
  for (auto& value : x) value = make(random);
  const Ranges<simmim::compute_t<Stored>> ranges(features, bins);

  simmim::HistogramArgs<Stored> args{};
  args.x = x.data() + layout.offset;
  args.samples = samples;
  args.features = features;
  args.sample_stride = layout.samples ? layout.apart : length;
  args.feature_stride = layout.samples ? length : layout.apart;
  args.binning.low = ranges.low.data();
  args.binning.high = ranges.high.data();
  args.binning.scale = ranges.scale.data();
  args.binning.edges = kind >= shared_edges ? ranges.edges.data() : nullptr;
  args.binning.edge_stride = kind == own_edges ? bins + 1 : 0;
  args.binning.bins = bins;
  args.binning.clip = kind == clipped || kind == clipped_edges;
  std::vector<int64_t> on_cpu(features * bins, 0), emulated(features * bins, 0);
  args.counts = on_cpu.data();
  simmim::histogram_cpu(args, 0, features, 0, samples);
  int64_t first = INT64_MAX;  // feature of which something is not counted
  for (int64_t f = features - 1; f >= 0; --f) {
    const auto row = on_cpu.begin() + f * bins;
    if (std::accumulate(row, row + bins, int64_t{0}) < samples) first = f;
  }
  args.counts = emulated.data();
  int64_t fault = INT64_MAX;
  const int error = simmim::histogram_cuda(args, &fault, nullptr);
  simt::check(error == 0 && on_cpu == emulated && fault == first,
              "histogram: samples=%ld features=%ld bins=%d layout=%d,%ld,%ld,%ld kind=%d bytes=%zu",
              samples, features, bins, layout.samples, layout.padding, layout.offset, layout.apart,
              kind, sizeof(Stored));
}

// Sizes that are made of vectors: of a warp's lanes or more, or of some of a block's.
template <typename Stored, typename Make>
void check_axis(bool along_samples, int bins, const Layout& layout, Bins kind, const Make& make) {
  const int64_t samples = along_samples ? 560 : 37, features = along_samples ? 3 : 132;
  check_counts<Stored>(samples, features, bins, layout, kind, make);
}

template <typename Stored, typename Make>
void check_layouts(int bins, const Make& make) {
  for (const bool along : {false, true}) {
    for (const Layout& layout : {Layout{along, 0, 0, 1},  // vectors
                                 {along, 16, 0, 1},       // vectors
                                 {along, 0, 1, 1},
                                 {along, 1, 0, 1},
                                 {along, 0, 0, 3}}) {
      check_axis<Stored>(along, bins, layout, uniform, make);
    }
  }
}

template <typename Stored>
void check_values() {
  const auto make = [](auto& random) { return simt::stored<Stored>(simt::draw(random)); };
  check_layouts<Stored>(16, make);
  check_counts<Stored>(1, 1, 2, {false, 0, 0, 1}, uniform, make);
  check_counts<Stored>(33, 131, 3, {false, 0, 0, 1}, uniform, make);
  for (const bool along : {false, true}) {
    for (const int bins : {2, 95, 96, 256}) {
      check_axis<Stored>(along, bins, {along, 0, 0, 1}, uniform, make);
    }
    for (const Bins kind : {clipped, shared_edges, own_edges, clipped_edges}) {
      check_axis<Stored>(along, 17, {along, 0, 0, 1}, kind, make);
    }
  }
}

}  // namespace

int main() {
  check_values<float>();
  check_values<double>();
  check_values<simmim::Half>();
  check_values<simmim::BFloat16>();
  // More samples than a lane reads at a time, and than a block takes.
  const auto make = [](auto& random) { return simt::draw(random); };
  check_counts<float>(2100, 128, 16, {false, 0, 0, 1}, uniform, make);
  check_counts<float>(16400, 1, 16, {true, 0, 0, 1}, uniform, make);
  check_counts<float>(4501, 2, 16, {true, 0, 0, 1}, clipped, make);
  // Codes, some of which are no bin: none, a few, and most of what bytes can be.
  for (const int bins : {2, 16, 256}) {
    for (const unsigned beyond : {0, 3, 256}) {
      const auto code = [&](auto& random) {
        return static_cast<uint8_t>(random() % std::min(bins + beyond, 256u));
      };
      for (const bool along : {false, true}) {
        check_axis<uint8_t>(along, bins, {along, 0, 0, 1}, uniform, code);
      }
      if (beyond == 3) check_layouts<uint8_t>(bins, code);
    }
  }
  return simt::finish("histogram");
}

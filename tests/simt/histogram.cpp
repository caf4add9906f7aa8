// histogram_cuda, emulated, against histogram_cpu: same arguments, same counts.
#include "../../csrc/kernels/histogram.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "values.h"

namespace {

int failures = 0;

template <typename Stored, typename Make>
void check(int64_t samples, int64_t features, int bins, bool transposed, bool with_edges, bool clip,
           const Make& make) {
  using Compute = simmim::compute_t<Stored>;
  std::mt19937 random(static_cast<unsigned>(samples * 31 + features));
  std::vector<Stored> x(samples * features);
  for (auto& value : x) value = make(random);
  std::vector<Compute> low(features, Compute(-1)), high(features, Compute(1));
  std::vector<Compute> scale(features, Compute(bins) / 2);
  std::vector<double> edges(bins + 1);
  for (int i = 0; i <= bins; ++i) edges[i] = -1 + 2 * std::sqrt(double(i) / bins);
  std::vector<int64_t> on_cpu(features * bins, 0), emulated(features * bins, 0);

  simmim::HistogramArgs<Stored> args{};
  args.x = x.data();
  args.samples = samples;
  args.features = features;
  args.sample_stride = transposed ? 1 : features;
  args.feature_stride = transposed ? samples : 1;
  args.binning.low = low.data();
  args.binning.high = high.data();
  args.binning.scale = scale.data();
  args.binning.edges = with_edges ? edges.data() : nullptr;
  args.binning.bins = bins;
  args.binning.clip = clip;
  args.counts = on_cpu.data();
  simmim::histogram_cpu(args, 0, features, 0, samples);
  args.counts = emulated.data();
  const int error = simmim::histogram_cuda(args, nullptr);
  if (error != 0 || on_cpu != emulated) {
    std::printf("histogram: samples=%ld features=%ld bins=%d transposed=%d edges=%d clip=%d: %s\n",
                long(samples), long(features), bins, transposed, with_edges, clip,
                error ? "launch failed" : "counts differ");
    ++failures;
  }
}

}  // namespace

int main() {
  for (const auto& [samples, features] :
       {std::pair<int64_t, int64_t>{1, 1}, {2, 33}, {257, 31}, {4097, 3}, {9000, 65}}) {
    for (const int bins : {2, 16, 255, 256}) {
      for (const int variant : {0, 1, 2, 4, 7}) {
        const bool transposed = variant & 1, edges = variant & 2, clip = variant & 4;
        if (samples * features > 100000 && (bins != 16 || variant > 1)) continue;
        check<float>(samples, features, bins, transposed, edges, clip, simt::draw);
        if (samples > 4096) continue;
        check<double>(samples, features, bins, transposed, edges, clip, simt::draw);
        check<simmim::Half>(samples, features, bins, transposed, edges, clip,
                            [](auto& r) { return simt::stored<simmim::Half>(simt::draw(r)); });
        check<simmim::BFloat16>(samples, features, bins, transposed, edges, clip, [](auto& r) {
          return simt::stored<simmim::BFloat16>(simt::draw(r));
        });
        check<uint8_t>(samples, features, bins, transposed, false, false,
                       [](auto& r) { return static_cast<uint8_t>(r()); });
      }
    }
  }
  std::printf("histogram: %d failures\n", failures);
  return failures != 0;
}

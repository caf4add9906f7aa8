// discretize_cuda, emulated, against discretize_cpu: same arguments, same codes.
#include "../../csrc/kernels/discretize.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "values.h"

namespace {

int failures = 0;

template <typename Stored>
void check(int64_t samples, int64_t features, int bins, bool transposed, bool with_edges,
           bool clip) {
  using Compute = simmim::compute_t<Stored>;
  std::mt19937 random(static_cast<unsigned>(samples * 31 + features));
  std::vector<Stored> x(samples * features);
  for (auto& value : x) value = simt::stored<Stored>(simt::draw(random));
  std::vector<Compute> low(features, Compute(-1)), high(features, Compute(1));
  std::vector<Compute> scale(features, Compute(bins) / 2);
  std::vector<double> edges(bins + 1);
  for (int i = 0; i <= bins; ++i) edges[i] = -1 + 2 * std::sqrt(double(i) / bins);
  std::vector<uint8_t> on_cpu(features * samples, 7), emulated(features * samples, 9);

  simmim::DiscretizeArgs<Stored> args{};
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
  args.codes = on_cpu.data();
  simmim::discretize_cpu(args, 0, features, 0, samples);
  // Values may begin at any byte: the sanitizer sees what reads them as if they did not.
  std::vector<unsigned char> bytes(x.size() * sizeof(Stored) + 1);
  std::memcpy(bytes.data() + 1, x.data(), bytes.size() - 1);
  std::vector<uint8_t> misaligned(on_cpu.size(), 8);
  args.x = reinterpret_cast<const Stored*>(bytes.data() + 1);
  args.codes = misaligned.data();
  simmim::discretize_cpu(args, 0, features, 0, samples);
  args.x = x.data();
  int64_t expected = INT64_MAX,
          fault = INT64_MAX;  // the first feature of which a sample has no bin
  for (int64_t f = features - 1; f >= 0; --f) {
    for (int64_t s = 0; s < samples; ++s) {
      const int32_t bin =
          simmim::stored_bin(x[s * args.sample_stride + f * args.feature_stride], args.binning, f);
      if (bin == simmim::kNoBin) expected = f;
    }
  }
  args.codes = emulated.data();
  const int error = simmim::discretize_cuda(args, &fault, nullptr);
  if (error != 0 || on_cpu != emulated || on_cpu != misaligned || fault != expected) {
    std::printf("discretize: samples=%ld features=%ld bins=%d transposed=%d edges=%d clip=%d: %s\n",
                long(samples), long(features), bins, transposed, with_edges, clip,
                error               ? "launch failed"
                : fault == expected ? "codes differ"
                                    : "another feature has a sample without a bin");
    ++failures;
  }
}

// Sorted columns with what quantiles leave out at their ends, against the CPU's edges.
template <typename Value>
void check_quantiles(int64_t samples, int64_t features, int bins, int odd, bool omit_nan,
                     bool omit_infinite) {
  std::mt19937 random(static_cast<unsigned>(samples));
  std::vector<Value> x(samples * features);
  for (int64_t i = 0; i < samples * features; ++i) {
    x[i] = std::round(std::normal_distribution<Value>(0, 4)(random));
    if (odd == 1 && i % 5 == 0) x[i] = NAN;
    if (odd == 2 && i % 7 == 0) x[i] = i % 2 ? INFINITY : -INFINITY;
    if (odd == 3) x[i] = i % 3 ? INFINITY : NAN;
  }
  for (int64_t f = 0; f < features; ++f) {
    std::sort(x.begin() + f * samples, x.begin() + (f + 1) * samples,
              [](Value a, Value b) { return std::isnan(b) ? !std::isnan(a) : a < b; });
  }
  std::vector<double> on_cpu(features * (bins + 1), 7), emulated(features * (bins + 1), 9);
  simmim::QuantileEdgesArgs<Value> args{x.data(), samples,       features,     1, samples, bins,
                                        omit_nan, omit_infinite, on_cpu.data()};
  const bool clean = simmim::quantile_edges_cpu(args, 0, features);
  args.edges = emulated.data();
  int64_t fault = INT64_MAX;
  const int error = simmim::sorted_quantile_edges_cuda(args, &fault, nullptr);
  if (error != 0 || on_cpu != emulated || clean != (fault == INT64_MAX)) {
    std::printf("quantile_edges: samples=%ld bins=%d odd=%d omit=%d,%d\n", long(samples), bins, odd,
                omit_nan, omit_infinite);
    ++failures;
  }
}

}  // namespace

int main() {
  for (const int64_t samples : {1, 2, 77, 500}) {
    for (const int bins : {2, 5, 256}) {
      for (int odd = 0; odd < 4; ++odd) {
        for (int omit = 0; omit < 4; ++omit) {
          check_quantiles<float>(samples, 9, bins, odd, omit & 1, omit & 2);
          check_quantiles<double>(samples, 3, bins, odd, omit & 1, omit & 2);
        }
      }
    }
  }
  for (const auto& [samples, features] :
       {std::pair<int64_t, int64_t>{1, 1}, {2, 33}, {257, 31}, {129, 33}, {0, 4}}) {
    for (const int bins : {2, 255, 256}) {
      for (const int variant : {0, 1, 2, 4, 7}) {
        const bool transposed = variant & 1, edges = variant & 2, clip = variant & 4;
        check<float>(samples, features, bins, transposed, edges, clip);
        check<double>(samples, features, bins, transposed, edges, clip);
        check<simmim::Half>(samples, features, bins, transposed, edges, clip);
        check<simmim::BFloat16>(samples, features, bins, transposed, edges, clip);
      }
    }
  }
  std::printf("discretize: %d failures\n", failures);
  return failures != 0;
}

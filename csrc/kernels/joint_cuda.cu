#include <algorithm>

#include "block_table.cuh"
#include "joint.h"
#include "joint_planes.cuh"
#include "pair_result.cuh"

namespace simmim {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the pairs beyond

// The samples of one pair that are valid in both features.
struct PairSamples {
  const uint8_t* x;
  const uint8_t* y;
  int64_t samples;
  int32_t x_bins, y_bins;

  template <typename Add>
  __device__ void each(Add&& add) const {
    const auto one = [&](int32_t row, int32_t column) {
      if (row < x_bins && column < y_bins) add(int64_t{row}, column);
    };
    each_sample(samples, one, x, y);
  }
};

__device__ PairSamples samples_of(const CodePair& codes, int64_t x, int64_t y) {
  return {codes.x + x * codes.samples, codes.y + y * codes.samples, codes.samples, codes.x_bins,
          codes.y_bins};
}

template <bool kHeld>
__global__ void __launch_bounds__(kTableThreads, 2)
    joint_histogram_kernel(JointHistogramArgs args, int64_t capacity) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features;
  const int64_t cells = int64_t{codes.x_bins} * codes.y_bins;
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    const PairSamples samples = samples_of(codes, pair / codes.y_features, pair % codes.y_features);
    const BlockTable<kHeld, PairSamples> table(samples, codes.x_bins, codes.y_bins, capacity);
    table.cells([&](int64_t cell, int64_t count) { args.counts[pair * cells + cell] = count; });
  }
}

template <bool kHeld>
__global__ void __launch_bounds__(kTableThreads, 2)
    pairwise_kernel(PairwiseInformationArgs args, int64_t capacity, int64_t* first_fault) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features;
  for (int64_t index = blockIdx.x; index < pairs; index += gridDim.x) {
    const int64_t x = index / codes.y_features, y = index % codes.y_features;
    if (args.symmetric && y < x) continue;
    PairEntropies result = entropies_without_gaps(args, x, y);
    if (!(args.symmetric && x == y)) {
      const PairSamples samples = samples_of(codes, x, y);
      const BlockTable<kHeld, PairSamples> table(samples, codes.x_bins, codes.y_bins, capacity);
      const bool gaps = has_gaps(args, x, y);
      if (gaps) result.samples = table.size();
#pragma unroll 1
      for (int of = gaps ? 0 : 2; of < 3 && result.samples >= 2; ++of) {
        const Axis axis = of == 0 ? Axis::rows : of == 1 ? Axis::columns : Axis::cells;
        const double cells =
            static_cast<double>(of == 1 ? 1 : codes.x_bins) * (of == 0 ? 1 : codes.y_bins);
        const double nats = table.entropy(axis, args.terms, result.samples, cells);
        (of == 0 ? result.x : of == 1 ? result.y : result.joint) = nats;
      }
    }
    if (threadIdx.x == 0) store_pair(args, x, y, result, first_fault);
  }
}

__global__ void __launch_bounds__(kTableThreads, 2)
    joint_information_kernel(JointInformationArgs args, int64_t* first_fault) {
  const int64_t x_bins = args.x_bins, y_bins = args.y_bins, cells = x_bins * y_bins;
  for (int64_t pair = blockIdx.x; pair < args.pairs; pair += gridDim.x) {
    const auto at = [counts = args.counts + pair * cells](int64_t cell) { return counts[cell]; };
    int64_t samples = 0;
    Lines(Axis::cells, x_bins, y_bins).each(at, [&](int64_t, int64_t count) {
      samples = AddCounts()(samples, count);
    });
    samples = table_total(samples, AddCounts());
    double entropy[3] = {};  // of x, y and both
#pragma unroll 1
    for (int of = 0; of < 3 && samples >= 2; ++of) {
      const Axis axis = of == 0 ? Axis::rows : of == 1 ? Axis::columns : Axis::cells;
      const Lines lines(axis, x_bins, y_bins);
      const double nats = entropy_of_cells(
          entropy_terms(args.estimator, samples), samples, static_cast<double>(lines.count),
          [&](auto&& visit) { lines.each(at, [&](int64_t, int64_t count) { visit(count); }); },
          [](auto sum) { return table_total(sum); });
      (of == 0 ? entropy[0] : of == 1 ? entropy[1] : entropy[2]) = nats;
    }
    if (threadIdx.x != 0) continue;
    if (samples < 2) report_fault(first_fault, pair);
    args.result[pair] =
        samples < 2 ? NAN : information(args.information, entropy[0], entropy[1], entropy[2]);
  }
}

dim3 blocks_for(int64_t pairs) { return dim3(static_cast<unsigned>(std::min(pairs, kMaxBlocks))); }

}  // namespace

int joint_histogram_cuda(const JointHistogramArgs& args, void* stream) {
  const int64_t pairs = args.codes.x_features * args.codes.y_features;
  if (pairs == 0) return cudaSuccess;
  const int64_t capacity = table_capacity(args.codes.x_bins, args.codes.y_bins);
  const auto kernel = holds_table(args.codes.x_bins, args.codes.y_bins)
                          ? joint_histogram_kernel<true>
                          : joint_histogram_kernel<false>;
  return launch(kernel, blocks_for(pairs), dim3(kTableThreads), table_bytes(capacity), stream, args,
                capacity);
}

int64_t pairwise_scratch_words(const PairwiseInformationArgs& args) {
  return planes_pay(args.codes) ? pairwise_planes_words(args) : 0;
}

int pairwise_information_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                              int64_t* first_fault, void* stream) {
  const int64_t pairs = args.codes.x_features * args.codes.y_features;
  if (pairs == 0) return cudaSuccess;
  if (planes_pay(args.codes)) return pairwise_planes_cuda(args, scratch, first_fault, stream);
  const int64_t capacity = table_capacity(args.codes.x_bins, args.codes.y_bins);
  const auto kernel = holds_table(args.codes.x_bins, args.codes.y_bins) ? pairwise_kernel<true>
                                                                        : pairwise_kernel<false>;
  return launch(kernel, blocks_for(pairs), dim3(kTableThreads), table_bytes(capacity), stream, args,
                capacity, first_fault);
}

int joint_information_cuda(const JointInformationArgs& args, int64_t* first_fault, void* stream) {
  if (args.pairs == 0) return cudaSuccess;
  return launch(joint_information_kernel, blocks_for(args.pairs), dim3(kTableThreads), kTotalsBytes,
                stream, args, first_fault);
}

}  // namespace simmim

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
    const auto one = [&](uint32_t row, uint32_t column) {
      if (row < static_cast<uint32_t>(x_bins) && column < static_cast<uint32_t>(y_bins)) {
        add(int64_t{row}, static_cast<int32_t>(column));
      }
    };
    constexpr int kCodes = 4;  // read at once, where they lie on whole words
    const auto place =
        reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y) | uintptr_t(samples);
    if (place % kCodes != 0) {
      for (int64_t i = threadIdx.x; i < samples; i += kTableThreads) one(x[i], y[i]);
      return;
    }
    for (int64_t i = threadIdx.x; i < samples / kCodes; i += kTableThreads) {
      uint32_t rows = reinterpret_cast<const uint32_t*>(x)[i];
      uint32_t columns = reinterpret_cast<const uint32_t*>(y)[i];
      for (int code = 0; code < kCodes; ++code, rows >>= 8, columns >>= 8) {
        one(rows & 255, columns & 255);
      }
    }
  }
};

// The same samples by one of their two codes alone: a table of one row.
struct OneCode {
  const PairSamples& pair;
  bool of_x;

  template <typename Add>
  __device__ void each(Add&& add) const {
    pair.each([&](int64_t row, int32_t column) {
      add(int64_t{0}, of_x ? static_cast<int32_t>(row) : column);
    });
  }
};

__device__ PairSamples samples_of(const CodePair& codes, int64_t x, int64_t y) {
  return {codes.x + x * codes.samples, codes.y + y * codes.samples, codes.samples, codes.x_bins,
          codes.y_bins};
}

__global__ void __launch_bounds__(kTableThreads)
    joint_histogram_kernel(JointHistogramArgs args, int64_t capacity) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features;
  const int64_t cells = int64_t{codes.x_bins} * codes.y_bins;
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    const PairSamples samples = samples_of(codes, pair / codes.y_features, pair % codes.y_features);
    BlockTable<PairSamples> table(samples, codes.x_bins, codes.y_bins, capacity);
    table.cells([&](int64_t cell, int64_t count) { args.counts[pair * cells + cell] = count; });
  }
}

__global__ void __launch_bounds__(kTableThreads, 2)
    pairwise_kernel(PairwiseInformationArgs args, int64_t capacity, int64_t* first_fault) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features;
  const double cells = static_cast<double>(int64_t{codes.x_bins} * codes.y_bins);
  for (int64_t index = blockIdx.x; index < pairs; index += gridDim.x) {
    const int64_t x = index / codes.y_features, y = index % codes.y_features;
    if (args.symmetric && y < x) continue;
    PairEntropies result = entropies_without_gaps(args, x, y);
    if (!(args.symmetric && x == y)) {
      const PairSamples samples = samples_of(codes, x, y);
      BlockTable<PairSamples> table(samples, codes.x_bins, codes.y_bins, capacity);
      const bool gaps = has_gaps(args, x, y);
      if (gaps) result.samples = table.size();
      if (result.samples >= 2) result.joint = table.entropy(args.terms, result.samples, cells);
#pragma unroll 1
      for (int of_x = 0; of_x < 2 && gaps && result.samples >= 2; ++of_x) {
        const OneCode code{samples, of_x == 1};
        const int32_t bins = of_x ? codes.x_bins : codes.y_bins;
        (of_x ? result.x : result.y) =
            BlockTable<OneCode>(code, 1, bins, capacity).entropy(args.terms, result.samples, bins);
      }
    }
    if (threadIdx.x == 0) store_pair(args, x, y, result, first_fault);
  }
}

// Of `count` lines of `length` counts in memory: the sum of each line is one cell.
struct Lines {
  int64_t count, step, length, stride;

  template <typename Visit>
  __device__ void cells(const int64_t* counts, Visit&& visit) const {
    for (int64_t line = threadIdx.x; line < count; line += kTableThreads) {
      int64_t sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += counts[line * step + i * stride];
      visit(sum);
    }
  }
};

__global__ void __launch_bounds__(kTableThreads, 2)
    joint_information_kernel(JointInformationArgs args, int64_t* first_fault) {
  const auto total = [](auto sum) { return block_total(sum, shared_memory<decltype(sum)>()); };
  const int64_t x_bins = args.x_bins, y_bins = args.y_bins, cells = x_bins * y_bins;
  for (int64_t pair = blockIdx.x; pair < args.pairs; pair += gridDim.x) {
    const int64_t* counts = args.counts + pair * cells;
    int64_t samples = 0;
    Lines{cells, 1, 1, 1}.cells(counts, [&](int64_t count) { samples += count; });
    samples = total(samples);
    double entropy[3] = {};  // of x, y and both
#pragma unroll 1
    for (int of = 0; of < 3 && samples >= 2; ++of) {
      const Lines lines = of == 0   ? Lines{x_bins, y_bins, y_bins, 1}
                          : of == 1 ? Lines{y_bins, 1, x_bins, y_bins}
                                    : Lines{cells, 1, 1, 1};
      const double nats = entropy_of_cells(
          entropy_terms(args.estimator, samples), samples, static_cast<double>(lines.count),
          [&](auto&& visit) { lines.cells(counts, visit); }, total);
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
  return launch(joint_histogram_kernel, blocks_for(pairs), dim3(kTableThreads),
                table_bytes(capacity), stream, args, capacity);
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
  return launch(pairwise_kernel, blocks_for(pairs), dim3(kTableThreads), table_bytes(capacity),
                stream, args, capacity, first_fault);
}

int joint_information_cuda(const JointInformationArgs& args, int64_t* first_fault, void* stream) {
  if (args.pairs == 0) return cudaSuccess;
  return launch(joint_information_kernel, blocks_for(args.pairs), dim3(kTableThreads), kTotalsBytes,
                stream, args, first_fault);
}

}  // namespace simmim

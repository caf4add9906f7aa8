#include <algorithm>

#include "binning.h"
#include "entropy.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarpLanes;  // of a block: a warp each
constexpr int64_t kMaxBlocks = 1 << 16;       // of kernels that stride over their work

struct RowEntropy {
  int64_t samples;
  double nats;  // NaN where there are fewer than 2 samples, or -1
};

// Of the counts of one row, by the lanes of a warp. `terms_of` gives the terms for its samples.
template <typename TermsOf>
__device__ RowEntropy row_entropy(const int64_t* counts, int64_t bins, const TermsOf& terms_of) {
  const int lane = threadIdx.x % kWarpLanes;
  const auto cells = [&](auto&& visit) {
    for (int64_t bin = lane; bin < bins; bin += kWarpLanes) visit(counts[bin]);
  };
  int64_t samples = 0;
  cells([&](int64_t count) { samples = AddCounts()(samples, count); });
  samples = warp_total(samples, kWarpLanes, AddCounts());
  if (samples < 2) return {samples, NAN};
  return {samples, entropy_of_cells(terms_of(samples), samples, static_cast<double>(bins), cells,
                                    [](auto sum) { return warp_total(sum); })};
}

// The row of this warp, or -1.
__device__ int64_t warp_row(int64_t rows) {
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarpLanes;
  return row < rows ? row : -1;
}

__global__ void __launch_bounds__(kThreads) entropy_kernel(EntropyArgs args, int64_t* first_fault) {
  const int64_t row = warp_row(args.features);
  if (row < 0) return;
  const RowEntropy result =
      row_entropy(args.counts + row * args.bins, args.bins,
                  [&](int64_t samples) { return entropy_terms(args.estimator, samples); });
  if (threadIdx.x % kWarpLanes != 0) return;
  args.entropy[row] = static_cast<float>(result.nats / args.nats_per_unit);
  if (result.samples < 2) report_fault(first_fault, row);
}

__global__ void __launch_bounds__(kThreads)
    marginals_kernel(MarginalsArgs args, int64_t* first_fault) {
  const int64_t row = warp_row(args.features);
  if (row < 0) return;
  const RowEntropy result =
      row_entropy(args.counts + row * args.bins, args.bins, [&](int64_t) { return args.terms; });
  if (threadIdx.x % kWarpLanes != 0) return;
  args.valid[row] = result.samples;
  args.entropy[row] = result.nats;
  if (result.samples < 2) report_fault(first_fault, row);
}

__global__ void __launch_bounds__(kThreads)
    tabulate_kernel(EntropyTerms terms, int64_t* table, int64_t size) {
  const int64_t count = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (count < size) table[count] = compute_term(terms, count);
}

__global__ void __launch_bounds__(kThreads)
    check_codes_kernel(const uint8_t* codes, int64_t count, int32_t bins, int64_t* first_fault) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    if (codes[i] >= bins && codes[i] != kInvalidCode) return report_fault(first_fault, i);
  }
}

dim3 blocks_of(int64_t work, int64_t per_block) {
  return dim3(static_cast<unsigned>(ceil_div(work, per_block)));
}

}  // namespace

int entropy_cuda(const EntropyArgs& args, int64_t* first_fault, void* stream) {
  if (args.features == 0) return cudaSuccess;
  return launch(entropy_kernel, blocks_of(args.features, kRows), dim3(kThreads), 0, stream, args,
                first_fault);
}

int marginals_cuda(const MarginalsArgs& args, int64_t* first_fault, void* stream) {
  if (args.features == 0) return cudaSuccess;
  return launch(marginals_kernel, blocks_of(args.features, kRows), dim3(kThreads), 0, stream, args,
                first_fault);
}

int tabulate_cuda(const EntropyTerms& terms, int64_t* table, int64_t size, void* stream) {
  return launch(tabulate_kernel, blocks_of(size, kThreads), dim3(kThreads), 0, stream, terms, table,
                size);
}

int check_codes_cuda(const uint8_t* codes, int64_t count, int32_t bins, int64_t* first_fault,
                     void* stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(ceil_div(count, kThreads), kMaxBlocks)));
  return launch(check_codes_kernel, grid, dim3(kThreads), 0, stream, codes, count, bins,
                first_fault);
}

}  // namespace simmim

#include <algorithm>

#include "block_table.cuh"
#include "conditional.h"

namespace simmim {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the work beyond

// The samples that have x, y and z: rows by z, and by x where that is asked for; columns by y. A
// null x or y is a constant.
struct TripleSamples {
  const uint8_t* x;
  const uint8_t* y;
  const int32_t* z;
  int64_t samples;
  int32_t x_bins, y_bins;
  bool by_x;

  template <typename Add>
  __device__ void each(Add&& add) const {
    const auto one = [&](int32_t a, int32_t b, int32_t c) {
      if (c >= 0 && a < x_bins && b < y_bins) add(by_x ? int64_t{c} * x_bins + a : int64_t{c}, b);
    };
    each_sample(samples, one, x, y, z);
  }
};

template <bool kHeld>
using TripleTable = BlockTable<kHeld, TripleSamples>;

template <bool kHeld>
__global__ void __launch_bounds__(kTableThreads, 2)
    grouped_entropy_kernel(GroupedTableArgs args, int64_t capacity, int64_t* first_fault) {
  const double alphabet = *args.given.alphabet * args.bins;
  for (int64_t feature = blockIdx.x; feature < args.features; feature += gridDim.x) {
    const uint8_t* x = args.x == nullptr ? nullptr : args.x + feature * args.samples;
    const TripleSamples samples{nullptr, x, args.given.z, args.samples, 1, args.bins, false};
    const TripleTable<kHeld> table(samples, *args.given.values, args.bins, capacity);
    const int64_t valid = table.size();
    double entropy = NAN;
    if (valid >= 2) entropy = table.entropy(Axis::cells, args.terms, valid, alphabet);
    if (threadIdx.x != 0) continue;
    args.valid[feature] = valid;
    args.entropy[feature] = entropy;
    if (valid < 2) report_fault(first_fault, feature);
  }
}

template <bool kHeld>
__global__ void __launch_bounds__(kTableThreads, 2)
    conditional_kernel(ConditionalTableArgs args, int64_t capacity, int64_t* first_fault) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features, whole = *args.z_valid;
  const double values = *args.given.alphabet;
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    const int64_t x = pair / codes.y_features, y = pair % codes.y_features;
    if (args.symmetric && y < x) continue;
    const bool same = args.symmetric && x == y;
    TripleSamples samples{codes.x + x * codes.samples,
                          codes.y + y * codes.samples,
                          args.given.z,
                          codes.samples,
                          codes.x_bins,
                          codes.y_bins,
                          false};
    double xz = args.xz_entropy[x], yz = args.yz_entropy[y], z = *args.z_entropy, joint = xz;
    int64_t valid = args.x_valid[x];
    const bool gaps = valid < whole || args.y_valid[y] < whole;
    // With gaps a table of z and y, for the entropies of z and of both, and always one of all
    // three.
#pragma unroll 1
    for (int with_x = gaps ? 0 : 1; with_x < (same && !gaps ? 1 : 2); ++with_x) {
      samples.by_x = with_x == 1;
      const int32_t x_bins = with_x ? codes.x_bins : 1;
      const TripleTable<kHeld> table(samples, *args.given.values * x_bins, codes.y_bins, capacity);
      if (!with_x) valid = table.size();
      if (valid < 2) break;
#pragma unroll 1
      for (int with_y = gaps ? 0 : 1; with_y < 2; ++with_y) {
        const double cells = values * x_bins * (with_y ? codes.y_bins : 1);
        const double nats =
            table.entropy(with_y ? Axis::cells : Axis::rows, args.terms, valid, cells);
        (with_y ? with_x ? joint : yz : with_x ? xz : z) = nats;
      }
    }
    if (threadIdx.x != 0) continue;
    if (same) joint = xz;                    // I(X;X|Z) = H(X|Z)
    double value = (xz - z) - (joint - yz);  // exactly 0 where x or y is constant
    if (args.terms.estimator == Estimator::plugin && value < 0) value = 0;
    if (valid < 2) {
      report_fault(first_fault, pair);
      value = NAN;
    }
    const float result = static_cast<float>(value / args.nats_per_unit);
    args.result[pair] = result;
    if (args.symmetric) args.result[y * codes.y_features + x] = result;
  }
}

dim3 blocks_for(int64_t work) { return dim3(static_cast<unsigned>(std::min(work, kMaxBlocks))); }

}  // namespace

int grouped_entropy_cuda(const GroupedTableArgs& args, int64_t* first_fault, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const int64_t capacity = table_capacity(args.given.most_values, args.bins);
  const auto kernel = holds_table(args.given.most_values, args.bins)
                          ? grouped_entropy_kernel<true>
                          : grouped_entropy_kernel<false>;
  return launch(kernel, blocks_for(args.features), dim3(kTableThreads), table_bytes(capacity),
                stream, args, capacity, first_fault);
}

int conditional_information_cuda(const ConditionalTableArgs& args, int64_t* first_fault,
                                 void* stream) {
  const int64_t pairs = args.codes.x_features * args.codes.y_features;
  if (pairs == 0) return cudaSuccess;
  const int64_t rows = args.given.most_values * args.codes.x_bins;
  const int64_t capacity = table_capacity(rows, args.codes.y_bins);
  const auto kernel =
      holds_table(rows, args.codes.y_bins) ? conditional_kernel<true> : conditional_kernel<false>;
  return launch(kernel, blocks_for(pairs), dim3(kTableThreads), table_bytes(capacity), stream, args,
                capacity, first_fault);
}

}  // namespace simmim

#include <algorithm>

#include "block_table.cuh"
#include "conditional.h"

namespace simmim {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the work beyond

// The samples that have x, y and z: rows by z, and by x where that is asked for; columns by y,
// where that is. A null y is a constant.
struct TripleSamples {
  const uint8_t* x;
  const uint8_t* y;
  const int32_t* z;
  int64_t samples;
  int32_t x_bins, y_bins;
  bool by_x, by_y;

  template <typename Add>
  __device__ void each(Add&& add) const {
    for (int64_t i = threadIdx.x; i < samples; i += kTableThreads) {
      const int32_t a = x == nullptr ? 0 : x[i], b = y == nullptr ? 0 : y[i];
      if (z[i] < 0 || a >= x_bins || b >= y_bins) continue;
      add(by_x ? int64_t{z[i]} * x_bins + a : int64_t{z[i]}, by_y ? b : 0);
    }
  }
};

// In nats over `samples` samples, those that count.
__device__ double table_entropy(const TripleSamples& triples, const Given& given,
                                const EntropyTerms& terms, int64_t samples, int64_t capacity) {
  const int32_t across = triples.by_x ? triples.x_bins : 1,
                columns = triples.by_y ? triples.y_bins : 1;
  const double alphabet = static_cast<double>(across) * columns * *given.alphabet;
  return BlockTable<TripleSamples>(triples, *given.values * across, columns, capacity)
      .entropy(terms, samples, alphabet);
}

__device__ int64_t table_size(const TripleSamples& triples, int64_t capacity) {
  return BlockTable<TripleSamples>(triples, 1, 1, capacity).size();
}

__global__ void __launch_bounds__(kTableThreads, 2)
    grouped_entropy_kernel(GroupedTableArgs args, int64_t capacity, int64_t* first_fault) {
  for (int64_t feature = blockIdx.x; feature < args.features; feature += gridDim.x) {
    const uint8_t* x = args.x == nullptr ? nullptr : args.x + feature * args.samples;
    const TripleSamples samples{nullptr, x, args.given.z, args.samples, 1, args.bins, false, true};
    const int64_t valid = table_size(samples, capacity);
    double entropy = NAN;
    if (valid >= 2) entropy = table_entropy(samples, args.given, args.terms, valid, capacity);
    if (threadIdx.x != 0) continue;
    args.valid[feature] = valid;
    args.entropy[feature] = entropy;
    if (valid < 2) report_fault(first_fault, feature);
  }
}

__global__ void __launch_bounds__(kTableThreads, 2)
    conditional_kernel(ConditionalTableArgs args, int64_t capacity, int64_t* first_fault) {
  const CodePair& codes = args.codes;
  const int64_t pairs = codes.x_features * codes.y_features, whole = *args.z_valid;
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
                          true,
                          true};
    double xz = args.xz_entropy[x], yz = args.yz_entropy[y], z = *args.z_entropy, joint = xz;
    int64_t valid = args.x_valid[x];
    const bool gaps = valid < whole || args.y_valid[y] < whole;
    if (gaps) valid = table_size(samples, capacity);
#pragma unroll 1
    for (int of = gaps ? 0 : 3; of < 4 && valid >= 2; ++of) {
      samples.by_x = of == 0 || of == 3;
      samples.by_y = of == 1 || of == 3;
      if (of == 3 && same) continue;
      const double nats = table_entropy(samples, args.given, args.terms, valid, capacity);
      (of == 0 ? xz : of == 1 ? yz : of == 2 ? z : joint) = nats;
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
  return launch(grouped_entropy_kernel, blocks_for(args.features), dim3(kTableThreads),
                table_bytes(capacity), stream, args, capacity, first_fault);
}

int conditional_information_cuda(const ConditionalTableArgs& args, int64_t* first_fault,
                                 void* stream) {
  const int64_t pairs = args.codes.x_features * args.codes.y_features;
  if (pairs == 0) return cudaSuccess;
  const int64_t capacity =
      table_capacity(args.given.most_values * args.codes.x_bins, args.codes.y_bins);
  return launch(conditional_kernel, blocks_for(pairs), dim3(kTableThreads), table_bytes(capacity),
                stream, args, capacity, first_fault);
}

}  // namespace simmim

#include <algorithm>

#include "float_vector.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

namespace simmim {
namespace {

template <int N>
[[gnu::always_inline]] inline void pack_tiles(const PackInputArgs& args, int64_t begin,
                                              int64_t end) {
  const int64_t column_tiles = divide_up(args.in_features, args.tile_columns);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first_row = task / column_tiles * args.lanes;
    const int64_t first_column = task % column_tiles * args.tile_columns;
    const int64_t columns = std::min(args.tile_columns, args.in_features - first_column);
    float* tile = args.packed + task * packed_tile_items(args.tile_columns, args.lanes);
    transpose_into<N>(args.x + first_row * args.in_features + first_column, args.in_features,
                      std::min(args.lanes, args.batch - first_row), columns, tile, args.lanes,
                      args.lanes);
    std::fill_n(tile + args.tile_columns * args.lanes, args.lanes, 0.0f);
  }
}

template <int N>
[[gnu::always_inline]] inline void pack_input(const PackInputArgs& args, int64_t begin,
                                              int64_t end) {
  if (args.lanes % N == 0) return pack_tiles<N>(args, begin, end);
  pack_tiles<4>(args, begin, end);
}

// -------------------------------------------------------------------------------------- gather

template <int N, typename Column>
[[gnu::always_inline]] inline float gather_dot(const float* values, const Column* columns,
                                               int64_t count, const float* x) {
  Vec<N> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * N <= count; i += 2 * N) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Vec<N> inputs;
#pragma GCC unroll 16
      for (int lane = 0; lane < N; ++lane) inputs[lane] = x[columns[i + half * N + lane]];
      sums[half] += load<N>(values + i + half * N) * inputs;
    }
  }
  float total = sum<N>(sums[0] + sums[1]);
  for (; i < count; ++i) total += values[i] * x[columns[i]];
  return total;
}

template <int N>
[[gnu::always_inline]] inline void gather_linear(const SparseLinearArgs& args, int64_t begin,
                                                 int64_t end) {
  const Packed packed(args.packed);
  const GatherWeight weight = packed.gather();
  const int64_t in_features = packed.header().in_features;
  const int64_t out_features = packed.header().out_features;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = weight.first[row], count = weight.first[row + 1] - first;
    const float bias = args.bias == nullptr ? 0.0f : args.bias[row];
    for (int64_t b = 0; b < args.batch; ++b) {
      const float* x = args.x + b * in_features;
      const float* values = weight.values + first;
      args.y[b * out_features + row] =
          bias + (weight.narrow_columns
                      ? gather_dot<N>(values, weight.narrow_columns + first, count, x)
                      : gather_dot<N>(values, weight.wide_columns + first, count, x));
    }
  }
}

// --------------------------------------------------------------------------------------- block

// kBlockRows outputs of `samples` of the `lanes` samples that lie side by side in x; `chains`
// independent sums where one sample's alone would wait for each other.
template <int N, int lanes, int samples, int chains>
[[gnu::always_inline]] inline void block_rows(const float* values, const int32_t* columns,
                                              int64_t count, const float* x,
                                              float (*outputs)[kBlockRows]) {
  constexpr int kVectors = kBlockRows / N;
  Vec<N> sums[chains][samples][kVectors] = {};
  const auto add = [&](int64_t i, int chain) __attribute__((always_inline)) {
    Vec<N> weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = load<N>(values + i * kBlockRows + v * N);
    const float* inputs = x + int64_t{columns[i]} * lanes;
#pragma GCC unroll 16
    for (int s = 0; s < samples; ++s) {
      const Vec<N> input = broadcast<N>(inputs[s]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[chain][s][v] += weights[v] * input;
    }
  };
  int64_t i = 0;
  for (; i + chains <= count; i += chains) {
#pragma GCC unroll 8
    for (int c = 0; c < chains; ++c) add(i + c, c);
  }
  for (; i < count; ++i) add(i, 0);
#pragma GCC unroll 16
  for (int s = 0; s < samples; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<N> total = sums[0][s][v];
#pragma GCC unroll 8
      for (int c = 1; c < chains; ++c) total += sums[c][s][v];
      store<N>(outputs[s] + v * N, total);
    }
  }
}

// The tiles [begin, end) of `lanes` samples each, by the row blocks [first_block, end_block).
template <int N, int lanes>
[[gnu::always_inline]] inline void block_tiles(const SparseLinearArgs& args, const Packed& packed,
                                               int64_t first_block, int64_t end_block,
                                               int64_t begin, int64_t end) {
  // Eight accumulators hide the latency of a multiply-add; sixteen have fewer loads of weights.
  constexpr int kSamples = lanes == 16 ? 16 : std::min(lanes, N / 2);
  constexpr int kChains = lanes == 1 ? N / 2 : lanes == 4 ? 2 : 1;
  const BlockWeight weight = packed.block();
  const int64_t out_features = packed.header().out_features;
  const int64_t tile_floats = packed_tile_items(packed.header().in_features, lanes);
  float outputs[lanes][kBlockRows];
  float bias[kBlockRows] = {};
  for (int64_t block = first_block; block < end_block; ++block) {
    const int64_t first = weight.first[block], count = weight.first[block + 1] - first;
    const int64_t first_row = block * kBlockRows;
    const int64_t rows = std::min<int64_t>(kBlockRows, out_features - first_row);
    if (args.bias != nullptr) std::copy_n(args.bias + first_row, rows, bias);
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int s = 0; s < lanes; s += kSamples) {
        block_rows<N, lanes, kSamples, kChains>(weight.values + first * kBlockRows,
                                                weight.columns + first, count,
                                                args.x + tile * tile_floats + s, outputs + s);
      }
      for (int64_t s = 0; s < std::min<int64_t>(lanes, args.batch - tile * lanes); ++s) {
        float* y = args.y + (tile * lanes + s) * out_features + first_row;
        if (rows == kBlockRows) {
#pragma GCC unroll 4
          for (int v = 0; v < kBlockRows; v += N) {
            store<N>(y + v, load<N>(outputs[s] + v) + load<N>(bias + v));
          }
        } else {
          for (int64_t r = 0; r < rows; ++r) y[r] = outputs[s][r] + bias[r];
        }
      }
    }
  }
}

template <int N, int lanes>
[[gnu::always_inline]] inline void block_lanes(const SparseLinearArgs& args, int64_t begin,
                                               int64_t end) {
  constexpr int64_t kInputBytes = 1 << 18;  // of x at a time, which stay in the L2 cache
  const Packed packed(args.packed);
  const int64_t tiles = divide_up(args.batch, lanes);
  const int64_t tile_floats = packed_tile_items(packed.header().in_features, lanes);
  const int64_t chunk =
      std::max<int64_t>(1, kInputBytes / (tile_floats * static_cast<int64_t>(sizeof(float))));
  for (int64_t tile = 0; tile < tiles; tile += chunk) {
    block_tiles<N, lanes>(args, packed, begin, end, tile, std::min(tile + chunk, tiles));
  }
}

template <int N>
[[gnu::always_inline]] inline void block_linear(const SparseLinearArgs& args, int64_t begin,
                                                int64_t end) {
  switch (args.lanes) {
    case 1:
      return block_lanes<N, 1>(args, begin, end);
    case 4:
      return block_lanes<N, 4>(args, begin, end);
    case 8:
      return block_lanes<N, 8>(args, begin, end);
    default:
      if constexpr (N == 16) block_lanes<N, 16>(args, begin, end);
  }
}

}  // namespace

SIMMIM_VECTOR_LAUNCHER(pack_input, PackInputArgs)
SIMMIM_VECTOR_LAUNCHER(gather_linear, SparseLinearArgs)
SIMMIM_VECTOR_LAUNCHER(block_linear, SparseLinearArgs)

int64_t block_lanes_cpu(int64_t batch) {
  if (batch <= 4) return batch <= 1 ? 1 : 4;
  // Rows of y are often a power of two apart, of which most caches hold eight lines.
  return batch > 8 && is_intel_server() ? 16 : 8;
}

}  // namespace simmim

#include <algorithm>
#include <vector>

#include "float_vector.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

namespace simmim {
namespace {

// ------------------------------------------------------------------------------------- element

// `rows` of a group's kGroupRows rows, times `vectors` vectors of a tile's batch lanes: eight
// accumulators, or four, that live in registers.
template <int N, int rows, int vectors, int lanes>
[[gnu::always_inline]] inline void element_rows(const float* values, const uint8_t* columns,
                                                const uint16_t* row_numbers, int64_t count,
                                                const float* x, float* y) {
  Vec<N> sums[rows][vectors];
  float* outputs[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    outputs[r] = y + row_numbers[r] * lanes;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = load<N>(outputs[r] + v * N);
  }
  for (int64_t i = 0; i < count; ++i, values += kGroupRows, columns += kGroupRows) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Vec<N> weight = broadcast<N>(values[r]);
      const float* inputs = x + int64_t{columns[r]} * lanes;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += weight * load<N>(inputs + v * N);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store<N>(outputs[r] + v * N, sums[r][v]);
  }
}

template <int N, int lanes>
[[gnu::always_inline]] inline void element_tile(const ElementWeight& weight,
                                                const ElementTile& tile, const float* x, float* y) {
  constexpr int kVectors = std::min(4, lanes / N);
  constexpr int kRows = kVectors == 4 ? 2 : 4;
  const float* values = weight.values + tile.first_weight;
  const uint8_t* columns = weight.columns + tile.first_weight;
  const uint16_t* row_numbers = weight.rows + tile.first_row;
  for (int64_t run = tile.first_run; run < tile.end_run; ++run) {
    const int64_t count = weight.runs[run].count;
    for (int64_t group = 0; group < weight.runs[run].groups; ++group) {
      for (int r = 0; r < kGroupRows; r += kRows) {
        for (int lane = 0; lane < lanes; lane += N * kVectors) {
          element_rows<N, kRows, kVectors, lanes>(values + r, columns + r, row_numbers + r, count,
                                                  x + lane, y + lane);
        }
      }
      values += kGroupRows * count;
      columns += kGroupRows * count;
      row_numbers += kGroupRows;
    }
  }
}

template <int N, int lanes>
[[gnu::always_inline]] inline void element_tasks(const SparseLinearArgs& args, int64_t begin,
                                                 int64_t end) {
  constexpr int64_t kLanes = lanes;
  const Packed packed(args.packed);
  const ElementWeight weight = packed.element();
  const int64_t out_features = packed.header().out_features;
  const int64_t row_blocks = divide_up(out_features, kTileRows);
  const int64_t column_tiles = divide_up(packed.header().in_features, kTileColumns);
  std::vector<float> y((kTileRows + 1) * kLanes);  // and the scratch row
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % row_blocks, batch_tile = task / row_blocks;
    const int64_t first_row = block * kTileRows;
    const int64_t rows_here = std::min(kTileRows, out_features - first_row);
    for (int64_t row = 0; row < rows_here; ++row) {
      std::fill_n(y.data() + row * kLanes, kLanes,
                  args.bias == nullptr ? 0.0f : args.bias[first_row + row]);
    }
    const float* x = args.x + batch_tile * column_tiles * kPackedTileColumns * kLanes;
    for (int64_t tile = 0; tile < column_tiles; ++tile, x += kPackedTileColumns * kLanes) {
      element_tile<N, lanes>(weight, weight.tiles[block * column_tiles + tile], x, y.data());
    }
    const int64_t first_lane = batch_tile * kLanes;
    const int64_t lanes_here = std::min(kLanes, args.batch - first_lane);
    transpose_into<N>(y.data(), kLanes, rows_here, lanes_here,
                      args.y + first_lane * out_features + first_row, out_features, rows_here);
  }
}

template <int N>
[[gnu::always_inline]] inline void element_linear(const SparseLinearArgs& args, int64_t begin,
                                                  int64_t end) {
  switch (args.lanes) {
    case 16:
      return element_tasks<N, 16>(args, begin, end);
    case 32:
      return element_tasks<N, 32>(args, begin, end);
    default:
      return element_tasks<N, 64>(args, begin, end);
  }
}

template <int N>
[[gnu::always_inline]] inline void pack_input(const PackInputArgs& args, int64_t begin,
                                              int64_t end) {
  const int64_t column_tiles = divide_up(args.in_features, kTileColumns);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first_row = task / column_tiles * args.lanes;
    const int64_t first_column = task % column_tiles * kTileColumns;
    const int64_t columns = std::min(kTileColumns, args.in_features - first_column);
    float* tile = args.packed + task * kPackedTileColumns * args.lanes;
    transpose_into<N>(args.x + first_row * args.in_features + first_column, args.in_features,
                      std::min(args.lanes, args.batch - first_row), columns, tile, args.lanes,
                      args.lanes);
    std::fill(tile + kTileColumns * args.lanes, tile + kPackedTileColumns * args.lanes, 0.0f);
  }
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

// kBlockRows outputs of `batch` samples; `chains` independent sums where one sample's alone would
// wait for each other.
template <int N, int batch, int chains>
[[gnu::always_inline]] inline void block_rows(const float* values, const int32_t* columns,
                                              int64_t count, const float* x, int64_t x_stride,
                                              float (*outputs)[kBlockRows]) {
  constexpr int kVectors = kBlockRows / N;
  Vec<N> sums[chains][batch][kVectors] = {};
  int64_t i = 0;
  for (; i + chains <= count; i += chains) {
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) {
      Vec<N> weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = load<N>(values + (i + c) * kBlockRows + v * N);
      }
#pragma GCC unroll 16
      for (int b = 0; b < batch; ++b) {
        const Vec<N> input = broadcast<N>(x[b * x_stride + columns[i + c]]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[c][b][v] += weights[v] * input;
      }
    }
  }
  for (; i < count; ++i) {
#pragma GCC unroll 16
    for (int b = 0; b < batch; ++b) {
      const Vec<N> input = broadcast<N>(x[b * x_stride + columns[i]]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[0][b][v] += load<N>(values + i * kBlockRows + v * N) * input;
      }
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < batch; ++b) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<N> total = sums[0][b][v];
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) total += sums[c][b][v];
      store<N>(outputs[b] + v * N, total);
    }
  }
}

template <int N>
[[gnu::always_inline]] inline void block_linear(const SparseLinearArgs& args, int64_t begin,
                                                int64_t end) {
  constexpr int kBatch = 12 * N / kBlockRows;  // 12 accumulators
  const Packed packed(args.packed);
  const BlockWeight weight = packed.block();
  const int64_t in_features = packed.header().in_features;
  const int64_t out_features = packed.header().out_features;
  float outputs[kBatch][kBlockRows];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = weight.first[block], count = weight.first[block + 1] - first;
    const int64_t first_row = block * kBlockRows;
    const int64_t rows = std::min(kBlockRows, out_features - first_row);
    const float* values = weight.values + first * kBlockRows;
    const int32_t* columns = weight.columns + first;
    for (int64_t b = 0; b < args.batch;) {
      const float* x = args.x + b * in_features;
      const int64_t samples = b + kBatch <= args.batch ? kBatch : 1;
      if (samples == kBatch) {
        block_rows<N, kBatch, 1>(values, columns, count, x, in_features, outputs);
      } else {
        block_rows<N, 1, 4>(values, columns, count, x, in_features, outputs);
      }
      for (int64_t s = 0; s < samples; ++s, ++b) {
        float* y = args.y + b * out_features + first_row;
        for (int64_t r = 0; r < rows; ++r) {
          y[r] = outputs[s][r] + (args.bias == nullptr ? 0.0f : args.bias[first_row + r]);
        }
      }
    }
  }
}

}  // namespace

SIMMIM_VECTOR_LAUNCHER(element_linear, SparseLinearArgs)
SIMMIM_VECTOR_LAUNCHER(pack_input, PackInputArgs)
SIMMIM_VECTOR_LAUNCHER(gather_linear, SparseLinearArgs)
SIMMIM_VECTOR_LAUNCHER(block_linear, SparseLinearArgs)

int64_t element_lanes_cpu(int64_t batch) {
  if (batch <= 16) return 16;
  // Twice the lanes halve the reads of a weight, but may be half empty.
  const bool full = divide_up(batch, 64) * 64 <= divide_up(batch, 32) * 36;
  return full && cpu_capability() >= CpuCapability::avx512 ? 64 : 32;
}

}  // namespace simmim

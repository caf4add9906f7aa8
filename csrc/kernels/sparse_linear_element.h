// Part of sparse_linear_element_cpu.cpp, for each of its targets: see every_target.h.

using Lanes = Vec<kLanes>;

// The four floats at p, over and over.
inline Lanes load_quads(const float* p) {
#if defined(SIMMIM_AVX512)
  // Masked by nothing: gcc 12 warns of the plain broadcast's own undefined value.
  return _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p));
#elif defined(SIMMIM_AVX2)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load<kLanes>(p);
#endif
}

// The weight of a group's row r, in all lanes. Reading x alone keeps some CPUs' loads busy: with
// `spreads` the weights of all rows come from one load. Others' shuffles would keep the
// multiply-adds waiting.
template <bool spreads, int r>
inline Lanes broadcast_weight(const float* values, const Lanes& quads) {
  if constexpr (spreads) return spread_of_quads<kLanes, r>(quads);
  return broadcast<kLanes>(values[r]);
}

// The columns of a group's next weights, of `steps` of each row, a byte each. In one load: those of
// x keep the loads busy.
template <int steps>
inline uint64_t load_columns(const uint8_t* columns) {
  static_assert(steps * kGroupRows <= 8);
  uint64_t bytes = 0;
  std::memcpy(&bytes, columns, steps * kGroupRows);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  bytes = __builtin_bswap64(bytes);
#endif
  return bytes;
}

// `row...` rows of a group, from its row number `first` on, times `vectors` vectors of a tile's
// batch lanes. Eight accumulators hide the latency of a multiply-add: those of four rows with one
// vector each are doubled, for even and odd weights.
template <bool spreads, int lanes, int vectors, int first, int... row>
inline void element_rows(const float* values, const uint8_t* columns, const uint16_t* row_numbers,
                         int64_t count, const float* x, float* y,
                         std::integer_sequence<int, row...>) {
  constexpr int kRows = sizeof...(row);
  constexpr int kChains = kRows * vectors < 8 ? 2 : 1;
  Lanes sums[kChains][kRows][vectors] = {};
  float* outputs[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    outputs[r] = y + row_numbers[first + r] * lanes;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[0][r][v] = load<kLanes>(outputs[r] + v * kLanes);
  }
  const auto add = [&](const Lanes& weight, const float* inputs, Lanes* sum) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] += weight * load<kLanes>(inputs + v * kLanes);
  };
  const auto add_weights = [&](const float* weights, uint64_t from, Lanes(*sums)[vectors]) {
    const Lanes quads = spreads ? load_quads(weights) : Lanes{};
    (add(broadcast_weight<spreads, first + row>(weights, quads),
         x + (from >> 8 * (first + row) & 0xff) * lanes, sums[row]),
     ...);
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const uint64_t from = load_columns<2>(columns + i * kGroupRows);
    add_weights(values + i * kGroupRows, from, sums[0]);
    add_weights(values + (i + 1) * kGroupRows, from >> 8 * kGroupRows, sums[kChains - 1]);
  }
  if (i < count) {
    add_weights(values + i * kGroupRows, load_columns<1>(columns + i * kGroupRows), sums[0]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      if constexpr (kChains == 2) sums[0][r][v] += sums[1][r][v];
      store<kLanes>(outputs[r] + v * kLanes, sums[0][r][v]);
    }
  }
}

template <bool spreads, int lanes>
inline void element_tile(const ElementWeight<float, 1>& weight, const ElementTile& tile,
                         const float* x, float* y) {
  constexpr int kVectors = std::min(4, lanes / kLanes);
  constexpr auto kRows = std::make_integer_sequence<int, kVectors == 4 ? 2 : 4>();
  const float* values = weight.values + tile.first_weight;
  const uint8_t* columns = weight.columns + tile.first_weight;
  const uint16_t* rows = weight.rows + tile.first_row;
  for (int64_t run = tile.first_run; run < tile.end_run; ++run) {
    const int64_t count = weight.runs[run].count;
    for (int64_t group = 0; group < weight.runs[run].groups; ++group) {
      for (int lane = 0; lane < lanes; lane += kLanes * kVectors) {
        const float* inputs = x + lane;
        element_rows<spreads, lanes, kVectors, 0>(values, columns, rows, count, inputs, y + lane,
                                                  kRows);
        if constexpr (kVectors == 4) {
          element_rows<spreads, lanes, kVectors, 2>(values, columns, rows, count, inputs, y + lane,
                                                    kRows);
        }
      }
      values += kGroupRows * count;
      columns += kGroupRows * count;
      rows += kGroupRows;
    }
  }
}

template <bool spreads, int lanes>
inline void element_tasks(const SparseLinearArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kBatchLanes = lanes;
  const Packed packed(args.packed);
  const ElementWeight weight = packed.element<float, 1>();
  const int64_t out_features = packed.header().out_features;
  const int64_t row_blocks = divide_up(out_features, kTileRows);
  const int64_t column_tiles = divide_up(packed.header().in_features, kTileColumns);
  constexpr int64_t kTileFloats = packed_tile_items(kTileColumns, kBatchLanes);
  const std::unique_ptr<OutputTile<lanes>> outputs(new OutputTile<lanes>);
  float* y = outputs->rows[0];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % row_blocks, batch_tile = task / row_blocks;
    const int64_t first_row = block * kTileRows;
    const int64_t rows_here = std::min(kTileRows, out_features - first_row);
    for (int64_t row = 0; row < rows_here; ++row) {
      std::fill_n(y + row * kBatchLanes, kBatchLanes,
                  args.bias == nullptr ? 0.0f : args.bias[first_row + row]);
    }
    const float* x = args.x + batch_tile * column_tiles * kTileFloats;
    for (int64_t tile = 0; tile < column_tiles; ++tile, x += kTileFloats) {
      element_tile<spreads, lanes>(weight, weight.tiles[block * column_tiles + tile], x, y);
    }
    const int64_t first_lane = batch_tile * kBatchLanes;
    const int64_t lanes_here = std::min(kBatchLanes, args.batch - first_lane);
    transpose_into<kLanes>(y, kBatchLanes, rows_here, lanes_here, outputs->samples[0], kTileRows,
                           rows_here);
    for (int64_t lane = 0; lane < lanes_here; ++lane) {
      std::copy_n(outputs->samples[lane], rows_here,
                  args.y + (first_lane + lane) * out_features + first_row);
    }
  }
}

inline void element_linear(const SparseLinearArgs& args, int64_t begin, int64_t end) {
#if defined(SIMMIM_AVX512)
  if (is_intel_server()) {
    switch (args.lanes) {
      case 16:
        return element_tasks<false, 16>(args, begin, end);
      case 32:
        return element_tasks<false, 32>(args, begin, end);
      default:
        return element_tasks<false, 64>(args, begin, end);
    }
  }
#endif
  return args.lanes == 16 ? element_tasks<true, 16>(args, begin, end)
                          : element_tasks<true, 32>(args, begin, end);
}

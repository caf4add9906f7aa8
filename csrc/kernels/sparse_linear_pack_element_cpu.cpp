// Packs the layouts element and pair. Packing the former is part of every training step: two passes
// over the mask, the first of which counts, so that nothing is moved twice.
#include <algorithm>

#include "mask_bits.h"
#include "sparse_linear_packed.h"
#include "sparse_linear_packer.h"

namespace simmim {
namespace {

// A tile of W, and where it lies in the caller's matrix, which may be W's transpose.
struct Tile {
  const uint8_t* mask;
  const float* weight;
  int64_t rows, columns;  // of the tile
  int64_t stride;         // of the caller's matrix
  bool transposed;

  // Calls kept(row, column, weight) for the kept weights; columns ascend within each row.
  template <typename Kept>
  void for_each(const Kept& kept) const {
    constexpr int64_t kAhead = 4;
    const int64_t lines = transposed ? columns : rows, length = transposed ? rows : columns;
    for (int64_t line = 0; line < lines; ++line) {
      const float* weights = weight + line * stride;
      // A tile's lines are too short for the hardware to see them coming.
      for (int64_t i = 0; line + kAhead < lines && i < length; i += 16) {
        __builtin_prefetch(weights + kAhead * stride + i);
      }
      for_each_kept(mask + line * stride, length, [&](int64_t i) {
        kept(transposed ? i : line, transposed ? line : i, weights[i]);
      });
    }
  }

  // How many weights each row keeps; at most tile_columns, so that bytes hold it.
  void count(uint8_t (&counts)[kTileRows]) const {
    std::fill(counts, counts + kTileRows, 0);
    for (int64_t line = 0; line < (transposed ? columns : rows); ++line) {
      const uint8_t* kept = mask + line * stride;
      if (transposed) {
        for (int64_t i = 0; i < rows; ++i) counts[i] += kept[i] != 0;
      } else {
        uint8_t sum = 0;
        for (int64_t i = 0; i < columns; ++i) sum += kept[i] != 0;
        counts[line] = sum;
      }
    }
  }
};

// The tiles of W in the order in which they are packed.
template <typename Visit>
void for_each_tile(const PackArgs& args, int64_t tile_columns, const Visit& visit) {
  const int64_t stride = args.transposed ? args.out_features : args.in_features;
  for (int64_t row = 0; row < args.out_features; row += kTileRows) {
    for (int64_t column = 0; column < args.in_features; column += tile_columns) {
      const int64_t offset = args.transposed ? column * stride + row : row * stride + column;
      visit(Tile{args.mask + offset, args.weight + offset,
                 std::min(kTileRows, args.out_features - row),
                 std::min(tile_columns, args.in_features - column), stride, args.transposed});
    }
  }
}

// The rows that keep any weight, by ascending count (a counting sort); returns how many.
int sort_rows(const uint8_t (&counts)[kTileRows], uint8_t (&order)[kTileRows]) {
  constexpr int kMost = UINT8_MAX;
  int first[kMost + 2] = {};
  for (const uint8_t count : counts) ++first[count + 1];
  const int empty = first[1];
  for (int count = 1; count <= kMost; ++count) first[count + 1] += first[count];
  for (int row = 0; row < kTileRows; ++row) {
    if (counts[row] != 0) order[first[counts[row]]++ - empty] = static_cast<uint8_t>(row);
  }
  return kTileRows - empty;
}

// Rows take turns of `width` weights.
template <typename Value, int width>
void pack(const PackArgs& args, int64_t tile_columns, const Allocate& allocate) {
  constexpr int64_t kTurn = width * kGroupRows;
  std::vector<ElementTile> tiles;
  std::vector<ElementRun> runs;
  std::vector<uint16_t> rows;
  int64_t weights = 0;
  for_each_tile(args, tile_columns, [&](const Tile& tile) {
    uint8_t counts[kTileRows], order[kTileRows];
    tile.count(counts);
    const int kept_rows = sort_rows(counts, order);
    const auto first_run = static_cast<int64_t>(runs.size());
    tiles.push_back({first_run, first_run, static_cast<int64_t>(rows.size()), weights});
    for (int first = 0; first < kept_rows; first += kGroupRows) {
      const int last = std::min<int>(first + kGroupRows, kept_rows) - 1;
      const auto count = static_cast<uint16_t>(divide_up(counts[order[last]], width));
      if (static_cast<int64_t>(runs.size()) > first_run && runs.back().count == count) {
        ++runs.back().groups;
      } else {
        runs.push_back({count, 1});
      }
      for (int r = first; r < first + kGroupRows; ++r) {
        rows.push_back(r <= last ? order[r] : kTileRows);
      }
      weights += count * kTurn;
    }
    tiles.back().end_run = static_cast<int64_t>(runs.size());
  });

  Packer packer(args);
  packer.reserve<ElementTile>(0, tiles.size());
  packer.reserve<ElementRun>(1, runs.size());
  packer.reserve<uint16_t>(2, rows.size());
  packer.reserve<Value>(3, weights);
  packer.reserve<uint8_t>(4, weights);
  packer.allocate(allocate);
  packer.write(0, tiles);
  packer.write(1, runs);
  packer.write(2, rows);
  auto* values = packer.section<Value>(3);
  auto* columns = packer.section<uint8_t>(4);
  std::fill_n(values, weights, Value{});
  std::fill_n(columns, weights, static_cast<uint8_t>(tile_columns));

  const ElementTile* packed = tiles.data();
  for_each_tile(args, tile_columns, [&](const Tile& tile) {
    int64_t next[kTileRows + 1];  // where each row's next weight goes
    const uint16_t* row = rows.data() + packed->first_row;
    int64_t weight = packed->first_weight;
    for (int64_t run = packed->first_run; run < packed->end_run; ++run) {
      for (int64_t group = 0; group < runs[run].groups; ++group) {
        for (int64_t r = 0; r < kGroupRows; ++r) next[*row++] = weight + width * r;
        weight += runs[run].count * kTurn;
      }
    }
    tile.for_each([&](int64_t row, int64_t column, float value) {
      int64_t& i = next[row];
      store(value, &values[i]);
      columns[i] = static_cast<uint8_t>(column);
      i += i % width == width - 1 ? kTurn - width + 1 : 1;
    });
    ++packed;
  });
}

}  // namespace

void pack_element_cpu(const PackArgs& args, const Allocate& allocate) {
  args.layout == Layout::pair ? pack<BFloat16, 2>(args, kPairColumns, allocate)
                              : pack<float, 1>(args, kTileColumns, allocate);
}

}  // namespace simmim

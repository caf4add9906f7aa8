// Packing the element layout is part of every training step: two passes over the mask, the first of
// which counts, so that nothing is moved twice.
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

  // How many weights each row keeps; at most kTileColumns, so that bytes hold it.
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
void for_each_tile(const PackArgs& args, const Visit& visit) {
  const int64_t stride = args.transposed ? args.out_features : args.in_features;
  for (int64_t row = 0; row < args.out_features; row += kTileRows) {
    for (int64_t column = 0; column < args.in_features; column += kTileColumns) {
      const int64_t offset = args.transposed ? column * stride + row : row * stride + column;
      visit(Tile{args.mask + offset, args.weight + offset,
                 std::min(kTileRows, args.out_features - row),
                 std::min(kTileColumns, args.in_features - column), stride, args.transposed});
    }
  }
}

// The rows that keep any weight, by ascending count (a counting sort); returns how many.
int sort_rows(const uint8_t (&counts)[kTileRows], uint8_t (&order)[kTileRows]) {
  int first[kTileColumns + 2] = {};
  for (const uint8_t count : counts) ++first[count + 1];
  const int empty = first[1];
  for (int64_t count = 1; count <= kTileColumns; ++count) first[count + 1] += first[count];
  for (int row = 0; row < kTileRows; ++row) {
    if (counts[row] != 0) order[first[counts[row]]++ - empty] = static_cast<uint8_t>(row);
  }
  return kTileRows - empty;
}

}  // namespace

void pack_element_cpu(const PackArgs& args, const std::function<void*(int64_t bytes)>& allocate) {
  std::vector<ElementTile> tiles;
  std::vector<ElementRun> runs;
  std::vector<uint16_t> rows;
  int64_t weights = 0;
  for_each_tile(args, [&](const Tile& tile) {
    uint8_t counts[kTileRows], order[kTileRows];
    tile.count(counts);
    const int kept_rows = sort_rows(counts, order);
    const auto first_run = static_cast<int64_t>(runs.size());
    tiles.push_back({first_run, first_run, static_cast<int64_t>(rows.size()), weights});
    for (int first = 0; first < kept_rows; first += kGroupRows) {
      const int last = std::min<int>(first + kGroupRows, kept_rows) - 1;
      const uint16_t count = counts[order[last]];
      if (static_cast<int64_t>(runs.size()) > first_run && runs.back().count == count) {
        ++runs.back().groups;
      } else {
        runs.push_back({count, 1});
      }
      for (int r = first; r < first + kGroupRows; ++r) {
        rows.push_back(r <= last ? order[r] : kTileRows);
      }
      weights += count * kGroupRows;
    }
    tiles.back().end_run = static_cast<int64_t>(runs.size());
  });

  Packer packer(args);
  packer.reserve<ElementTile>(0, tiles.size());
  packer.reserve<ElementRun>(1, runs.size());
  packer.reserve<uint16_t>(2, rows.size());
  packer.reserve<float>(3, weights);
  packer.reserve<uint8_t>(4, weights);
  packer.allocate(allocate);
  packer.write(0, tiles);
  packer.write(1, runs);
  packer.write(2, rows);
  auto* values = packer.section<float>(3);
  auto* columns = packer.section<uint8_t>(4);
  std::fill_n(values, weights, 0.0f);
  std::fill_n(columns, weights, static_cast<uint8_t>(kTileColumns));

  const ElementTile* packed = tiles.data();
  for_each_tile(args, [&](const Tile& tile) {
    int64_t next[kTileRows + 1];  // where each row's next weight goes
    const uint16_t* row = rows.data() + packed->first_row;
    int64_t weight = packed->first_weight;
    for (int64_t run = packed->first_run; run < packed->end_run; ++run) {
      for (int64_t group = 0; group < runs[run].groups; ++group) {
        for (int64_t r = 0; r < kGroupRows; ++r) next[*row++] = weight + r;
        weight += runs[run].count * kGroupRows;
      }
    }
    tile.for_each([&](int64_t row, int64_t column, float value) {
      values[next[row]] = value;
      columns[next[row]] = static_cast<uint8_t>(column);
      next[row] += kGroupRows;
    });
    ++packed;
  });
}

}  // namespace simmim

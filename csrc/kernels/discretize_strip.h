// Writes the codes of a strip. Part of a kernel: see every_target.h.
#include "bin_tile.h"
#include "transpose.h"

// Codes [rows, kGroup] of a tile.
[[gnu::always_inline]] inline void narrow(const int32_t* bins, int rows, uint8_t* codes) {
  for (int i = 0; i < rows * kGroup; ++i) codes[i] = static_cast<uint8_t>(bins[i]);
}

// From codes [kTileRows, kGroup] to [kGroup, kTileRows].
[[gnu::noinline]] void turn(const uint8_t* codes, uint8_t* turned) {
  constexpr int kBlock = kGroup < 16 ? kGroup : 16;
  for (int column = 0; column < kGroup; column += kBlock) {
    for (int row = 0; row < kTileRows; row += kBlock) {
      vector_of<uint8_t, kBlock> block[kBlock];
#pragma GCC unroll 16
      for (int i = 0; i < kBlock; ++i)
        memcpy(block + i, codes + (row + i) * kGroup + column, kBlock);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kBlock; ++i) {
        memcpy(turned + (column + i) * kTileRows + row, block + i, kBlock);
      }
    }
  }
}

// Writes codes [columns, code_stride] of the columns of x or, where all of them are one feature's
// samples, codes [rows, columns]. Returns how many values have no bin.
template <typename Stored>
int64_t discretize_strip(const Strip<Stored>& strip, int64_t code_stride, uint8_t* codes) {
  const bool one_feature = strip.bound_stride == 0;
  alignas(64) int32_t bins[kTileRows * kGroup];
  alignas(64) uint8_t tile[kTileRows * kGroup], turned[kTileRows * kGroup];
  int64_t without_bin = 0;
  for (int64_t row = 0; row < strip.rows; row += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, strip.rows - row));
    for (int64_t column = 0; column < strip.columns; column += kGroup) {
      const int columns = static_cast<int>(std::min<int64_t>(kGroup, strip.columns - column));
      bin_tile(strip, row, rows, column, bins);
      int32_t missing = 0;
      for (int i = 0; i < rows * kGroup; ++i) missing += bins[i] == kNoBin;
      without_bin += missing - rows * (kGroup - columns);
      narrow(bins, rows, tile);
      if (one_feature) {
        for (int r = 0; r < rows; ++r) {
          memcpy(codes + (row + r) * strip.columns + column, tile + r * kGroup, columns);
        }
        continue;
      }
      turn(tile, turned);
      for (int c = 0; c < columns; ++c) {
        uint8_t* to = codes + (column + c) * code_stride + row;
        const uint8_t* from = turned + c * kTileRows;
        rows == kTileRows ? memcpy(to, from, kTileRows) : memcpy(to, from, rows);
      }
    }
  }
  return without_bin;
}

int64_t group_size() { return kGroup; }

// y = x W^T + b on CUDA, W packed as tensor cores take it: tiles of 16 x 64 weights, of which a
// warp makes fragments. The dense weight never exists. A tile has one of two forms: bits: a bit for
// every weight and the values of the kept ones, which a warp goes through bit by bit, in its
// registers; density + 1/16 of a dense 16-bit weight. list: the kept weights alone, each with its
// place, which a warp scatters to shared memory, and for which the masked ones cost nothing but
// zeros (Xia et al., "Flash-LLM", VLDB 2023); twice the density.
#pragma once

#include <cstdint>

#include "half.h"

namespace simmim {

constexpr int64_t kPackedRows = 16, kPackedColumns = 64;  // of a tile
constexpr int64_t kPackedUnit = 16;                       // bytes: all parts begin at a multiple

// In units of kPackedUnit bytes: one with the sizes, then where each tile begins, then the tiles,
// row by row. In the form of bits a tile is 32 words of bits, one for each lane of a warp, and then
// the values, lane by lane. Lane 4 g + t has columns 16 t to 16 t + 15 of row g (bits 0 to 15) and
// of row g + 8. In that of a list it is a unit with the count of steps, and then, for each step, a
// word for each lane: a value and, in the upper half, where it belongs.
struct PackedTiles {
  int64_t out_features, in_features;

  SIMMIM_HD int64_t row_tiles() const { return (out_features + kPackedRows - 1) / kPackedRows; }
  SIMMIM_HD int64_t column_tiles() const {
    return (in_features + kPackedColumns - 1) / kPackedColumns;
  }
  SIMMIM_HD int64_t tiles() const { return row_tiles() * column_tiles(); }
  // Of the first tile; there is one start more than tiles, of 32 bits each.
  SIMMIM_HD int64_t first_unit() const { return 1 + (tiles() + 1 + 3) / 4; }
};

enum class TileForm { bits, list };

struct PackTilesArgs {
  const void* weight;   // [out_features, in_features] float32, float16 or bfloat16
  const uint8_t* mask;  // [out_features, in_features], 0 or 1
  PackedTiles shape;
  int64_t item_size;  // bytes of a weight; list: 2
  TileForm form;
};
// units [tiles]: how many units each tile takes.
int count_tile_units_cuda(const PackTilesArgs& args, int64_t* units, void* stream);
// ends [tiles]: the sums of the units up to and with each tile's.
int pack_tiles_cuda(const PackTilesArgs& args, const int64_t* ends, void* packed, void* stream);

// Accumulates in float32. Masked weights contribute nothing, whatever x holds. Where `packed` is of
// other sizes, y is NaN: only the device can tell.
template <typename Stored>
struct TileLinearArgs {
  const void* packed;
  const Stored* x;     // [batch, column_tiles * kPackedColumns], at a multiple of kPackedUnit bytes
  const Stored* bias;  // [out_features], or null
  Stored* y;           // [batch, out_features]
  int64_t batch;
  PackedTiles shape;
  TileForm form;  // list: 16-bit types alone
};
// How many floats of scratch it needs.
template <typename Stored>
int64_t tile_linear_scratch(const TileLinearArgs<Stored>& args);
template <typename Stored>
int tile_linear_cuda(const TileLinearArgs<Stored>& args, float* scratch, void* stream);

}  // namespace simmim

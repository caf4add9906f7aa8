// What lies in a packed weight, by layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "sparse_linear.h"

namespace simmim {

// Rows and columns are cut into tiles; the rows of a tile are sorted by their count of weights and
// taken in groups of kGroupRows (SELL-C-sigma: Kreutzer et al., SIAM J. Sci. Comput. 36(5), 2014).
// A run is `groups` groups that have the weights of `count` turns in each row. Within a group the
// rows take turns, weight by weight, or pair by pair. A short row is filled up with value 0 at the
// column after the tile's last, a group short of rows with row kTileRows, a scratch row.
constexpr int64_t kGroupRows = 4;
struct ElementRun {
  uint16_t count, groups;
};
struct ElementTile {
  int64_t first_run, end_run, first_row, first_weight;
};
template <typename Value, int width>  // float and 1, or of the layout pair BFloat16 and 2
struct ElementWeight {
  const ElementTile* tiles;  // [row tiles, column tiles]
  const ElementRun* runs;
  const uint16_t* rows;    // within the tile
  const Value* values;     // [groups][count][kGroupRows][width]
  const uint8_t* columns;  // within the tile, as values
};
static_assert(kTileColumns <= UINT8_MAX && kPairColumns <= UINT8_MAX);

// Which sample lies where in a column of a tile of x of the layout pair: interleaving the lower
// halves of every 128 bits of two columns gives the pairs of the first 16 samples in order, and the
// upper halves the others'.
constexpr int64_t pair_sample(int64_t item) {
  static_assert(kPairLanes == 32);
  return item / 8 * 4 + item % 4 + item / 4 % 2 * 16;
}

// The y that a task makes, and the scratch row; and its transpose, for the caller's rows may be a
// power of two apart, of which caches hold few lines at a time.
template <int64_t lanes>
struct alignas(64) OutputTile {
  float rows[kTileRows + 1][lanes];
  float samples[lanes][kTileRows];

  OutputTile() { std::fill_n(rows[kTileRows], lanes, 0.0f); }  // the rest is not made 0
};

struct GatherWeight {
  const int64_t* first;  // [out_features + 1]
  const float* values;
  const uint16_t* narrow_columns;  // null where in_features exceeds 65,536:
  const int32_t* wide_columns;     // then these
};

struct BlockWeight {
  const int64_t* first;    // [row blocks + 1]
  const float* values;     // [blocks, kBlockRows], 0 beyond the last row
  const int32_t* columns;  // [blocks]
};

// Rows are sorted by their count of weights and taken in groups of kWindowRows lanes. In each step
// of a group every lane takes its next weight, if its column lies in the step's window; else the
// lane is idle.
constexpr uint8_t kTaken = 1 << 7;  // of which permutations, that see 5 bits or 7, see nothing
struct WindowGroup {
  int64_t first_step, first_value;
};
struct WindowWeight {
  const WindowGroup* groups;  // [groups + 1]
  const int32_t* rows;        // [groups, kWindowRows]; -1 where there is none
  const float* values;        // of the taken weights, step by step, lane by lane
  const uint8_t* offsets;     // [steps, kWindowRows] kTaken + the column within the window; idle: 0
  const int32_t* windows;     // [steps] the vector of x that the window begins with
};

// The same with longer windows, and values for the idle lanes as well. Lanes come by kPlanesLanes,
// whose columns' bytes make one vector; of a group with no more rows than that, the rest is left
// out.
constexpr int64_t kPlanesLanes = 64;
struct PlanesGroup {
  int64_t first_step, first_part;  // a part is kPlanesLanes of a step
};
inline int64_t planes_lanes(const int32_t* rows) {
  return rows[kPlanesLanes] < 0 ? kPlanesLanes : kPlanesRows;
}
template <typename Value>  // float or BFloat16
struct PlanesWeight {
  const PlanesGroup* groups;  // [groups + 1]
  const int32_t* rows;        // [groups, kPlanesRows]; -1 where there is none
  const Value* values;        // [parts, kPlanesLanes]; a lane's is at planes_value<Value>(lane)
  const uint8_t* offsets;     // likewise; as above, a lane's is at planes_byte(lane)
  const int32_t* windows;     // [steps] a window begins with column kPlanesStep times that

  // Of the group, those that are not left out.
  int64_t lanes(int64_t group) const { return planes_lanes(rows + group * kPlanesRows); }
};

// Of bytes that are unpacked twice, to floats, each 128 bits give four to each of four vectors.
constexpr int64_t planes_byte(int64_t lane) {
  static_assert(kPlanesLanes == 64);
  return lane % 16 / 4 * 16 + lane / 16 * 4 + lane % 4;
}

// Two vectors of bfloat16 lie as one of pairs, of which the second are the high halves.
template <typename Value>
constexpr int64_t planes_value(int64_t lane) {
  if constexpr (sizeof(Value) == sizeof(float)) return lane;
  return lane / 32 * 32 + lane % 16 * 2 + lane / 16 % 2;
}

// Writes the sums of a group's `lanes` for one sample; `rows` are the lanes', -1 after the last.
inline void write_lanes(const SparseLinearArgs& args, int64_t out_features, const int32_t* rows,
                        int64_t lanes, int64_t sample, const float* sums) {
  while (lanes > 0 && rows[lanes - 1] < 0) --lanes;
  float* y = args.y + sample * out_features;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int32_t row = rows[lane];
    y[row] = sums[lane] + (args.bias == nullptr ? 0.0f : args.bias[row]);
  }
}

// W is cut into blocks of kTileOutputs outputs, these into tiles of kTileInputs inputs, of which
// each half of the outputs has rows for pairs of inputs: the items of row r are, output by output,
// the weights of the inputs 2 r and 2 r + 1, as matrix instructions take them.
struct TileWeight {
  const int64_t* first;    // [blocks] values
  const uint32_t* masks;   // [blocks, input tiles, 2, kTileInputs / 2] bit i: item i is kept
  const uint16_t* values;  // bfloat16 of the kept items
};

// Reads a packed weight.
class Packed {
 public:
  explicit Packed(const void* bytes) : bytes_(static_cast<const uint8_t*>(bytes)) {
    std::memcpy(&header_, bytes, sizeof header_);
  }
  const PackedHeader& header() const { return header_; }
  template <typename Value, int width>
  ElementWeight<Value, width> element() const {
    return {section<ElementTile>(0), section<ElementRun>(1), section<uint16_t>(2),
            section<Value>(3), section<uint8_t>(4)};
  }
  GatherWeight gather() const {
    return {section<int64_t>(0), section<float>(1), section<uint16_t>(2), section<int32_t>(3)};
  }
  WindowWeight window() const {
    return {section<WindowGroup>(0), section<int32_t>(1), section<float>(2), section<uint8_t>(3),
            section<int32_t>(4)};
  }
  template <typename Value>
  PlanesWeight<Value> planes() const {
    return {section<PlanesGroup>(0), section<int32_t>(1), section<Value>(2), section<uint8_t>(3),
            section<int32_t>(4)};
  }
  TileWeight tile() const {
    return {section<int64_t>(0), section<uint32_t>(1), section<uint16_t>(2)};
  }
  BlockWeight block() const {
    return {section<int64_t>(0), section<float>(1), section<int32_t>(2)};
  }

 private:
  template <typename T>
  const T* section(int i) const {
    const int64_t offset = header_.sections[i];
    return offset == 0 ? nullptr : reinterpret_cast<const T*>(bytes_ + offset);
  }

  const uint8_t* bytes_;
  PackedHeader header_;
};

}  // namespace simmim

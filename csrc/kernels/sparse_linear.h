// y = x W^T + b with W packed once, for one kernel. A packed weight is one block of bytes that is
// made and read on the same machine; compressed_linear.h is the portable form.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace simmim {

// element: any mask, batches that fill a vector; x lies transposed, the batch along the vector.
// gather: any mask, small batches; compressed rows (CSR).
// block: a mask of columns of kBlockRows rows, which make one vector of outputs.
// window: any mask, small batches on AVX-512; the rows along the vector, x gathered by a
// permutation of two of its vectors.
// planes: the same with longer windows, of the bytes of x; the smallest batches, with VBMI.
// pair: element's, in bfloat16; two weights of a row at a time, for vdpbf16ps.
// tile: any mask, in bfloat16; expanded into tiles of a dense matrix, for AMX or vdpbf16ps.
enum class Layout : int64_t {
  element = 1,
  gather = 2,
  block = 3,
  window = 4,
  tile = 5,
  planes = 6,
  pair = 7
};

constexpr int64_t kMostPacked = 1 << 30;  // rows, and columns, that 32 bits number in windows
constexpr int kBlockRows = 16;
constexpr int64_t kTileRows = 128;     // outputs that a task of the element layout makes
constexpr int64_t kTileColumns = 160;  // times a batch tile's lanes: what the L1 cache holds
constexpr int64_t kPairColumns = 208;  // the same for the layout pair
constexpr int64_t kPairLanes = 32;     // samples of a tile, of which a column is a vector
constexpr int64_t kWindowRows = 32;
constexpr int64_t kWindowVector = 16;  // floats of a vector; a window begins at any and is two long
constexpr int64_t kPlanesRows = 128;
constexpr int64_t kPlanesStep = 16;      // a window begins at any such multiple: longer steps are
                                         // loads of whole lines, but leave more lanes idle
constexpr int64_t kPlanesColumns = 128;  // of a window
constexpr int64_t kTileSamples = 16;     // rows and columns of a tile of x in the tile layout
constexpr int64_t kTileInputs = 32;
constexpr int64_t kTileOutputs = 32;
constexpr int64_t kTileBatch = 512;  // samples that a task of the tile layout takes

// A packed weight begins with this; sparse_linear_packed.h has the rest.
struct PackedHeader {
  static constexpr uint64_t kMagic = 0x34575353'4d494d53;  // "SMIMSSW4"
  static constexpr int64_t kAlignment = 64;                // of the block and of its sections
  uint64_t magic;
  int64_t bytes;  // of the whole block
  Layout layout;
  int64_t out_features, in_features;
  int64_t sections[5];  // byte offsets
  int64_t is_bfloat16;  // planes: whether the values are
  uint64_t checksum;    // of all before it

  // Every call works it out anew: products that need not wait for each other. Each is turned by
  // another distance, or changes of two highest bits would cancel each other.
  uint64_t sum_words() const {
    constexpr int kWords = offsetof(PackedHeader, checksum) / sizeof(uint64_t);
    uint64_t words[kWords], sum = 0;
    std::memcpy(words, this, sizeof words);
#pragma GCC unroll 16
    for (int i = 0; i < kWords; ++i) {
      const uint64_t product = words[i] * (0x9e3779b97f4a7c15 * (2 * i + 1));
      const int distance = 5 * i + 1;
      sum += product << distance | product >> (64 - distance);
    }
    return sum;
  }
};

using Allocate = std::function<void*(int64_t bytes)>;

struct PackArgs {
  const float* weight;  // [out_features, in_features], or its transpose [in_features, out_features]
  const uint8_t* mask;  // likewise, 0 or 1
  int64_t out_features, in_features;
  Layout layout;
  bool transposed;   // element and pair alone
  bool is_bfloat16;  // planes alone: the weights are such numbers, and are kept so
};
// Asks for memory of so many bytes, at a multiple of kAlignment, and packs into it.
void pack_sparse_cpu(const PackArgs& args, const Allocate& allocate);

// Whether the block layout fits: every column of kBlockRows rows is kept or masked as a whole.
bool is_block_mask_cpu(const uint8_t* mask, int64_t out_features, int64_t in_features);

struct SparseLinearArgs {
  const void* packed;
  const float* x;     // [batch, in_features]; element and block: as pack_input makes it; window:
                      // rows of window_columns(in_features)
  const float* bias;  // [out_features], or null
  float* y;           // [batch, out_features]
  int64_t batch;
  int64_t lanes;  // element and block: batch rows in a tile, as pack_input's
};
// Each is serial over its tasks [begin, end):
void element_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);  // tiles of y
void gather_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);   // rows of W
void block_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);    // row blocks
void window_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);   // row groups
void planes_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);   // row groups

// x [batch, in_features] -> [batch tiles, column tiles, tile_columns + 1, lanes]; serial over the
// tiles [begin, end). A tile ends with a column of zeros, which the padding of the element layout
// points at: padding with a column of x would let its infinities and NaNs through.
struct PackInputArgs {
  const float* x;
  float* packed;
  int64_t batch, in_features;
  int64_t lanes;         // as element_lanes_cpu or block_lanes_cpu has them
  int64_t tile_columns;  // element: kTileColumns; block: in_features
};
void pack_input_cpu(const PackInputArgs& args, int64_t begin, int64_t end);
constexpr int64_t packed_tile_items(int64_t tile_columns, int64_t lanes) {
  return (tile_columns + 1) * lanes;
}
int64_t element_lanes_cpu(int64_t batch);
int64_t block_lanes_cpu(int64_t batch);  // 1: x lies packed as it is

// The tile layout: x [batch, in_features] -> [batch tiles, input tiles, kTileSamples, kTileInputs]
// bfloat16, 0 beyond in_features, anything beyond the batch; serial over the batch tiles
// [begin, end).
// The pair layout: -> [batch tiles, column tiles, kPairColumns + 1, kPairLanes], as pack_input's
// tiles.
struct PackTilesArgs {
  const void* x;  // float, or bfloat16
  bool is_bfloat16;
  uint16_t* tiles;
  int64_t batch, in_features;
};
void pack_tiles_cpu(const PackTilesArgs& args, int64_t begin, int64_t end);
void pack_pairs_cpu(const PackTilesArgs& args, int64_t begin, int64_t end);

struct TileLinearArgs {
  const void* packed;
  const uint16_t* x;  // as the layout's function above makes it
  const float* bias;  // [out_features], or null
  void* y;            // [batch, out_features] float, or bfloat16
  bool is_bfloat16;
  int64_t batch;
};
// Serial over the tasks [begin, end) of every kTileBatch samples by every kTileOutputs outputs.
void tile_linear_cpu(const TileLinearArgs& args, int64_t begin, int64_t end);
// Serial over the tasks [begin, end) of every kPairLanes samples by every kTileRows outputs.
void pair_linear_cpu(const TileLinearArgs& args, int64_t begin, int64_t end);

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a row of x takes whose last window ends with its last vector.
inline int64_t window_columns(int64_t in_features) {
  return std::max<int64_t>(divide_up(in_features, kWindowVector), 2) * kWindowVector;
}

}  // namespace simmim

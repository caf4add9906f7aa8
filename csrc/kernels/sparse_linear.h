// y = x W^T + b with W packed once, for one kernel. A packed weight is one block of bytes that is
// made and read on the same machine; compressed_linear.h is the portable form.
#pragma once

#include <cstdint>
#include <vector>

namespace simmim {

// element: any mask, batches that fill a vector; x lies transposed, the batch along the vector.
// gather: any mask, small batches; compressed rows (CSR).
// block: a mask of columns of kBlockRows rows, which make one vector of outputs.
enum class Layout : int64_t { element = 1, gather = 2, block = 3 };

constexpr int64_t kBlockRows = 16;
constexpr int64_t kTileRows = 128;     // outputs that a task of the element layout makes
constexpr int64_t kTileColumns = 128;  // times a batch tile's lanes: what the L1 cache holds
// A packed tile of x ends with a column of zeros, which padding points at: padding with a column
// of x would let its infinities and NaNs through.
constexpr int64_t kPackedTileColumns = kTileColumns + 1;

// A packed weight begins with this; sparse_linear_packed.h has the rest.
struct PackedHeader {
  static constexpr uint64_t kMagic = 0x31575353'4d494d53;  // "SMIMSSW1"
  uint64_t magic;
  int64_t bytes;  // of the whole block
  Layout layout;
  int64_t out_features, in_features;
  int64_t sections[5];  // byte offsets
};

struct PackArgs {
  const float* weight;  // [out_features, in_features]
  const uint8_t* mask;  // likewise, 0 or 1
  int64_t out_features, in_features;
  Layout layout;
};
std::vector<uint8_t> pack_sparse_cpu(const PackArgs& args);

// Whether the block layout fits: every column of kBlockRows rows is kept or masked as a whole.
bool is_block_mask_cpu(const uint8_t* mask, int64_t out_features, int64_t in_features);

struct SparseLinearArgs {
  const void* packed;
  const float* x;     // [batch, in_features]; element: as pack_input makes it
  const float* bias;  // [out_features], or null
  float* y;           // [batch, out_features]
  int64_t batch;
  int64_t lanes;  // element: batch rows in a tile, as pack_input's
};
// Each is serial over its tasks [begin, end):
void element_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);  // tiles of y
void gather_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);   // rows of W
void block_linear_cpu(const SparseLinearArgs& args, int64_t begin, int64_t end);    // row blocks

// x [batch, in_features] -> [batch tiles, column tiles, kPackedTileColumns, lanes]; serial over
// the tiles [begin, end).
struct PackInputArgs {
  const float* x;
  float* packed;
  int64_t batch, in_features;
  int64_t lanes;  // element_lanes_cpu(batch)
};
void pack_input_cpu(const PackInputArgs& args, int64_t begin, int64_t end);
int64_t element_lanes_cpu(int64_t batch);

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace simmim

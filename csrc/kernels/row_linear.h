// y = x W^T + b on CUDA for few samples, W packed as rows: a list of each row's kept weights, which
// takes 12 bits and the value for each and has no cost for the masked ones. The samples lie in
// shared memory, where the lanes of a warp gather what their weights multiply.
#pragma once

#include <cstdint>

#include "half.h"

namespace simmim {

constexpr int kChunkColumns = 4096;  // of x, that shared memory holds: what 12 bits tell apart
constexpr int kCodeBits = 12;
constexpr int kStepWeights = 32;  // that one step multiplies, one for each lane of a warp
constexpr int kTileSteps = 4;     // that are gathered at once
constexpr int kBlockSteps = 8;    // whose codes are read together
constexpr int kBlockWeights = kStepWeights * kBlockSteps;
constexpr int kRowUnit = 16;  // bytes: all parts begin at a multiple
constexpr int kBanks = 8;     // of shared memory, of kRowUnit bytes each

SIMMIM_HD int code_words(int steps) { return (kCodeBits * steps + 31) / 32; }
// How many steps a block has where so many weights are left, 0 or less where none are.
SIMMIM_HD int block_steps(int left) {
  const int steps = (left + kStepWeights - 1) / kStepWeights;
  return steps < 0 ? 0 : steps < kBlockSteps ? steps : kBlockSteps;
}
SIMMIM_HD int block_bytes(int steps, int item_size) {
  return kStepWeights * (steps * item_size + code_words(steps) * int{sizeof(uint32_t)});
}
SIMMIM_HD int list_bytes(int kept, int item_size) {
  return kept / kBlockWeights * block_bytes(kBlockSteps, item_size) +
         block_bytes(block_steps(kept % kBlockWeights), item_size);
}

// Where a column of a chunk lies in shared memory, which is its code: neighbours, which one thread
// writes, are 8 apart, so that the threads of a warp write side by side.
SIMMIM_HD int slot_of(int column) { return column / 16 * 16 + column % 2 * 8 + column % 16 / 2; }
// Where the weight of a lane lies among those of its step: as the tensor cores take them.
SIMMIM_HD int place_of(int lane) {
  return lane / 8 % 2 * 16 + lane % 8 / 2 * 4 + lane / 16 * 2 + lane % 2;
}

struct RowList {
  uint32_t first_unit;
  int32_t kept;
};

// In units of kRowUnit bytes: one with the sizes, then the RowLists, chunk by chunk, then the
// lists: blocks, each the values of its steps and then the codes, the lanes side by side in every
// word. Weight p of a list is that of lane p % 32 in step p / 32; as far as it can be had, the 8
// neighbours that are gathered at once lie in different banks.
struct PackedRows {
  int64_t out_features, in_features;  // at least one of each

  SIMMIM_HD int64_t chunks() const { return (in_features + kChunkColumns - 1) / kChunkColumns; }
  SIMMIM_HD int64_t lists() const { return chunks() * out_features; }
  SIMMIM_HD int64_t first_unit() const { return 1 + (lists() + 1) / 2; }
};

struct PackRowsArgs {
  const void* weight;   // [out_features, in_features] float32, float16 or bfloat16
  const uint8_t* mask;  // [out_features, in_features], 0 or 1
  PackedRows shape;
  int64_t item_size;  // bytes of a weight
};
// units [lists]: how many units each list takes.
int count_row_units_cuda(const PackRowsArgs& args, int64_t* units, void* stream);
// ends [lists]: the sums of the units up to and with each list's; packed: all 0.
int pack_rows_cuda(const PackRowsArgs& args, const int64_t* ends, void* packed, void* stream);

// Accumulates in float32. Masked weights contribute nothing, whatever x holds. Where `packed` is of
// other sizes, y is NaN: only the device can tell.
template <typename Stored>
struct RowLinearArgs {
  const void* packed;
  const Stored* x;         // [batch, columns], at a multiple of kRowUnit bytes
  const Stored* bias;      // [out_features], or null
  Stored* y;               // [batch, out_features]
  int64_t batch, columns;  // columns: at least in_features, a multiple of 16
  PackedRows shape;
};
// How many floats of scratch it needs.
template <typename Stored>
int64_t row_linear_scratch(const RowLinearArgs<Stored>& args);
template <typename Stored>
int row_linear_cuda(const RowLinearArgs<Stored>& args, float* scratch, void* stream);

}  // namespace simmim

// A weight matrix as it is stored: one bit for each weight, and the values of the kept ones.
// For float32 that is density + 1/32 of the dense size, on any machine.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace simmim {

// Weight i, row by row, is kept where bit i % 8 of byte i / 8 is set.
SIMMIM_HD bool is_kept(const uint8_t* bitmap, int64_t i) { return bitmap[i / 8] >> (i % 8) & 1; }

inline int64_t bitmap_bytes(int64_t weights) { return (weights + 7) / 8; }

// mask [weights], 0 or 1 -> bitmap, its bytes [begin, end). Bits beyond the last weight are 0.
struct PackBitsArgs {
  const uint8_t* mask;
  uint8_t* bitmap;
  int64_t weights;
};
void pack_bits_cpu(const PackBitsArgs& args, int64_t begin, int64_t end);

// How many of the weights [begin, end) are kept.
int64_t count_kept_cpu(const uint8_t* bitmap, int64_t begin, int64_t end);

// Writes the weights [begin, end), 0 where none is kept.
struct DecompressArgs {
  const uint8_t* bitmap;
  const void* values;  // of the kept weights from `begin` on, in any type of item_size 2, 4 or 8
  void* weights;       // [end - begin]
  int64_t item_size;   // bytes
};
void decompress_cpu(const DecompressArgs& args, int64_t begin, int64_t end);

// sums = grad W, for batches too small for a product of matrices to be worth a decompressed weight;
// serial over the columns kGradColumns * [begin, end).
struct InputGradArgs {
  const uint8_t* bitmap;
  const float* values;
  const int64_t* first;  // [out_features] values before each row
  const float* grad;     // [batch, out_features]
  float* sums;           // [batch, in_features]
  int64_t out_features, in_features, batch;
};
constexpr int64_t kGradColumns = 64;
void small_input_grad_cpu(const InputGradArgs& args, int64_t begin, int64_t end);
bool has_small_input_grad_cpu();  // false: there is no such kernel for this CPU

// On CUDA. Counted and decompressed by segments of so many weights:
constexpr int64_t kSegmentWeights = 1024;

int pack_bits_cuda(const PackBitsArgs& args, void* stream);

// kept [segments]: how many weights of each segment are kept.
int count_segments_cuda(const uint8_t* bitmap, int64_t weights, int64_t* kept, void* stream);

struct DecompressSegmentsArgs {
  const uint8_t* bitmap;
  const void* values;          // [kept], any floating type of item_size 2, 4 or 8
  int64_t kept;                // how many values there are
  const int64_t* bits_set;     // of the whole bitmap: all weights are NaN where there are others
  const int64_t* first_value;  // [segments]: the values before each
  void* weights_out;           // [weights]
  int64_t weights;
  int64_t item_size;  // bytes
};
int decompress_segments_cuda(const DecompressSegmentsArgs& args, void* stream);

}  // namespace simmim

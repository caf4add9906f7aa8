// masked_linear's kernels; see simmim_ext/ops/masked_linear.py for the mathematics.
#pragma once

#include <cstdint>

#include "half.h"

namespace simmim {

// masked[i] = mask[i] ? weight[i] : 0. A select and not a product: what is masked contributes
// nothing, whatever its value, NaN included.
struct MaskWeightArgs {
  const void* weight;  // [elements], any type of item_size 2, 4 or 8 bytes whose 0 is all-zero bits
  const uint8_t* mask;  // [elements], 0 or 1
  void* masked;         // [elements]
  int64_t item_size;    // bytes
};
void mask_weight_cpu(const MaskWeightArgs& args, int64_t begin, int64_t end);

// How many of mask [elements], 0 or 1, are 1.
int64_t count_mask_cpu(const uint8_t* mask, int64_t begin, int64_t end);

// product[o, i] = mask[o, i] ? sum_b grad[b, o] x[b, i] : 0, the sampled dense-dense product
// (SDDMM): only the kept entries are computed.
struct SampledProductArgs {
  const float* grad;    // [out_features, batch], transposed, rows padded with 0 to `width` lanes
  const float* x;       // [in_features, batch], likewise
  const uint8_t* mask;  // [out_features, in_features], 0 or 1
  float* product;       // [out_features, in_features]
  int64_t width;        // batch rounded up to a multiple of kBatchLanes
  int64_t in_features;  // below 2^31
};
constexpr int64_t kBatchLanes = 16;
// Serial over the rows [begin, end) of out_features.
void sampled_product_cpu(const SampledProductArgs& args, int64_t begin, int64_t end);

// source [rows, columns] float32 -> target [columns, width], zero in the lanes beyond rows.
struct TransposeArgs {
  const float* source;
  float* target;
  int64_t rows;
  int64_t columns;
  int64_t width;  // a multiple of kBatchLanes
};
// Serial over blocks [begin, end) of kBatchLanes source rows.
void transpose_blocks_cpu(const TransposeArgs& args, int64_t begin, int64_t end);

// Whether no value has all of its exponent bits set, as infinity and NaN have.
struct AllFiniteArgs {
  const void* values;
  int64_t count;
  int64_t item_size;  // 2, 4 or 8 bytes
  uint64_t exponent_bits;
};
bool all_finite_cpu(const AllFiniteArgs& args);

// On CUDA, for batches of up to kSkinnyBatch: each weight and its mask are read once, and what is
// masked is skipped, whatever it and x hold. Larger batches are a dense product's.
constexpr int64_t kSkinnyBatch = 16;

template <typename Stored>
struct MaskedLinearArgs {
  const Stored* x;       // [batch, in_features]
  const Stored* weight;  // [out_features, in_features]
  const uint8_t* mask;   // [out_features, in_features], 0 or 1
  const Stored* bias;    // [out_features], or null
  Stored* y;             // [batch, out_features]
  int64_t batch, out_features, in_features;
};
template <typename Stored>
int masked_linear_cuda(const MaskedLinearArgs<Stored>& args, void* stream);

// product[o, i] = mask[o, i] ? sum_b grad[b, o] x[b, i] : 0
template <typename Stored>
struct MaskedOuterArgs {
  const Stored* grad;   // [batch, out_features]
  const Stored* x;      // [batch, in_features]
  const uint8_t* mask;  // [out_features, in_features], 0 or 1
  Stored* product;      // [out_features, in_features]
  int64_t batch, out_features, in_features;
};
template <typename Stored>
int masked_outer_cuda(const MaskedOuterArgs<Stored>& args, void* stream);

}  // namespace simmim

// What makes a dense product with a masked weight exact where x has infinities or NaNs.
#pragma once

#include <cstdint>

#include "compressed_linear.h"
#include "half.h"

namespace simmim {

// y = x W^T + b, W holding 0 where it is masked. Masked weights contribute nothing, but their 0
// times an infinity or NaN of x is NaN: rows of y whose x has some are computed again, from the
// kept weights alone. Weight (o, i) is element o * output_stride + i * input_stride.
template <typename Stored>
struct SpecialRowsArgs {
  const Stored* x;        // [batch, inputs]
  const Stored* weight;   // [outputs * inputs]
  const uint8_t* mask;    // [outputs * inputs], 0 or 1; null where the bitmap is given
  const uint8_t* bitmap;  // of compressed_linear.h, or null
  const Stored* bias;     // [outputs], or null
  Stored* y;              // [batch, outputs]
  int64_t batch, outputs, inputs;
  int64_t output_stride, input_stride;
};
template <typename Stored>
int special_rows_cuda(const SpecialRowsArgs<Stored>& args, void* stream);

}  // namespace simmim

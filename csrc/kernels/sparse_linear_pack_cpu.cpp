#include <algorithm>

#include "sparse_linear_packed.h"
#include "sparse_linear_packer.h"

namespace simmim {
namespace {

void pack_gather(const PackArgs& args, const Allocate& allocate) {
  std::vector<int64_t> first = {0};
  std::vector<float> values;
  std::vector<uint16_t> narrow_columns;
  std::vector<int32_t> wide_columns;
  const bool narrow = args.in_features <= 1 << 16;
  for (int64_t row = 0; row < args.out_features; ++row) {
    for (int64_t column = 0; column < args.in_features; ++column) {
      const int64_t i = row * args.in_features + column;
      if (!args.mask[i]) continue;
      values.push_back(args.weight[i]);
      if (narrow) {
        narrow_columns.push_back(static_cast<uint16_t>(column));
      } else {
        wide_columns.push_back(static_cast<int32_t>(column));
      }
    }
    first.push_back(values.size());
  }
  write_packed(args, allocate, first, values, narrow_columns, wide_columns);
}

void pack_block(const PackArgs& args, const Allocate& allocate) {
  std::vector<int64_t> first = {0};
  std::vector<float> values;
  std::vector<int32_t> columns;
  for (int64_t row = 0; row < args.out_features; row += kBlockRows) {
    const int64_t rows = std::min<int64_t>(kBlockRows, args.out_features - row);
    for (int64_t column = 0; column < args.in_features; ++column) {
      if (!args.mask[row * args.in_features + column]) continue;
      columns.push_back(static_cast<int32_t>(column));
      for (int64_t r = 0; r < kBlockRows; ++r) {
        values.push_back(r < rows ? args.weight[(row + r) * args.in_features + column] : 0.0f);
      }
    }
    first.push_back(columns.size());
  }
  write_packed(args, allocate, first, values, columns);
}

}  // namespace

void pack_sparse_cpu(const PackArgs& args, const Allocate& allocate) {
  switch (args.layout) {
    case Layout::element:
    case Layout::pair:
      return pack_element_cpu(args, allocate);
    case Layout::gather:
      return pack_gather(args, allocate);
    case Layout::block:
      return pack_block(args, allocate);
    case Layout::window:
      return pack_window_cpu(args, allocate);
    case Layout::planes:
      return pack_planes_cpu(args, allocate);
    case Layout::tile:
      return pack_tile_cpu(args, allocate);
  }
}

bool is_block_mask_cpu(const uint8_t* mask, int64_t out_features, int64_t in_features) {
  if (in_features == 0) return true;  // and there is no mask to read
  for (int64_t row = 0; row < out_features; ++row) {
    const int64_t first = row / kBlockRows * kBlockRows;
    if (std::memcmp(mask + row * in_features, mask + first * in_features, in_features) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace simmim

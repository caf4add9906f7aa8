#include <algorithm>
#include <numeric>
#include <utility>

#include "sparse_linear_packed.h"

namespace simmim {
namespace {

// Appends sections, each on a cache line of its own, behind a header.
class Packer {
 public:
  explicit Packer(const PackArgs& args) : bytes_(kAlignment * 2) {
    static_assert(sizeof(PackedHeader) <= kAlignment * 2);
    header_ = {PackedHeader::kMagic, 0, args.layout, args.out_features, args.in_features, {}};
  }

  template <typename T>
  void add(int section, const std::vector<T>& items) {
    header_.sections[section] = static_cast<int64_t>(bytes_.size());
    const auto* begin = reinterpret_cast<const uint8_t*>(items.data());
    bytes_.insert(bytes_.end(), begin, begin + items.size() * sizeof(T));
    bytes_.resize(divide_up(bytes_.size(), kAlignment) * kAlignment);
  }

  std::vector<uint8_t> finish() {
    header_.bytes = static_cast<int64_t>(bytes_.size());
    std::memcpy(bytes_.data(), &header_, sizeof header_);
    return std::move(bytes_);
  }

 private:
  static constexpr int64_t kAlignment = 64;
  std::vector<uint8_t> bytes_;
  PackedHeader header_;
};

struct Weight {
  float value;
  uint16_t column;
};

// One tile of the element layout, as it grows.
struct ElementSections {
  std::vector<ElementTile> tiles;
  std::vector<ElementRun> runs;
  std::vector<uint16_t> rows;
  std::vector<float> values;
  std::vector<uint16_t> columns;

  void add_tile(const std::vector<std::vector<Weight>>& tile) {
    std::vector<int> order;
    for (int row = 0; row < static_cast<int>(tile.size()); ++row) {
      if (!tile[row].empty()) order.push_back(row);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return tile[a].size() < tile[b].size(); });
    const int64_t first_run = runs.size(), first_row = rows.size(), first_weight = values.size();
    for (size_t first = 0; first < order.size(); first += kGroupRows) {
      const size_t in_group = std::min<size_t>(kGroupRows, order.size() - first);
      const auto count = static_cast<uint16_t>(tile[order[first + in_group - 1]].size());
      if (static_cast<int64_t>(runs.size()) > first_run && runs.back().count == count) {
        ++runs.back().groups;
      } else {
        runs.push_back({count, 1});
      }
      for (size_t r = 0; r < kGroupRows; ++r) {
        rows.push_back(r < in_group ? order[first + r] : kTileRows);
      }
      for (size_t i = 0; i < count; ++i) {
        for (size_t r = 0; r < kGroupRows; ++r) {
          const bool filled = r < in_group && i < tile[order[first + r]].size();
          values.push_back(filled ? tile[order[first + r]][i].value : 0.0f);
          columns.push_back(filled ? tile[order[first + r]][i].column : kTileColumns);
        }
      }
    }
    tiles.push_back({first_run, static_cast<int64_t>(runs.size()), first_row, first_weight});
  }
};

void pack_element(const PackArgs& args, Packer& packer) {
  ElementSections sections;
  std::vector<std::vector<Weight>> tile;
  for (int64_t first_row = 0; first_row < args.out_features; first_row += kTileRows) {
    const int64_t rows = std::min(kTileRows, args.out_features - first_row);
    for (int64_t first_column = 0; first_column < args.in_features; first_column += kTileColumns) {
      const int64_t columns = std::min(kTileColumns, args.in_features - first_column);
      tile.assign(rows, {});
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t offset = (first_row + row) * args.in_features + first_column;
        for (int64_t column = 0; column < columns; ++column) {
          if (args.mask[offset + column]) {
            tile[row].push_back({args.weight[offset + column], static_cast<uint16_t>(column)});
          }
        }
      }
      sections.add_tile(tile);
    }
  }
  packer.add(0, sections.tiles);
  packer.add(1, sections.runs);
  packer.add(2, sections.rows);
  packer.add(3, sections.values);
  packer.add(4, sections.columns);
}

void pack_gather(const PackArgs& args, Packer& packer) {
  std::vector<int64_t> first = {0};
  std::vector<float> values;
  std::vector<int32_t> columns;
  for (int64_t row = 0; row < args.out_features; ++row) {
    for (int64_t column = 0; column < args.in_features; ++column) {
      const int64_t i = row * args.in_features + column;
      if (!args.mask[i]) continue;
      values.push_back(args.weight[i]);
      columns.push_back(static_cast<int32_t>(column));
    }
    first.push_back(values.size());
  }
  packer.add(0, first);
  packer.add(1, values);
  if (args.in_features <= 1 << 16) {
    packer.add(2, std::vector<uint16_t>(columns.begin(), columns.end()));
  } else {
    packer.add(3, columns);
  }
}

void pack_block(const PackArgs& args, Packer& packer) {
  std::vector<int64_t> first = {0};
  std::vector<float> values;
  std::vector<int32_t> columns;
  for (int64_t row = 0; row < args.out_features; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, args.out_features - row);
    for (int64_t column = 0; column < args.in_features; ++column) {
      if (!args.mask[row * args.in_features + column]) continue;
      columns.push_back(static_cast<int32_t>(column));
      for (int64_t r = 0; r < kBlockRows; ++r) {
        values.push_back(r < rows ? args.weight[(row + r) * args.in_features + column] : 0.0f);
      }
    }
    first.push_back(columns.size());
  }
  packer.add(0, first);
  packer.add(1, values);
  packer.add(2, columns);
}

}  // namespace

std::vector<uint8_t> pack_sparse_cpu(const PackArgs& args) {
  Packer packer(args);
  switch (args.layout) {
    case Layout::element:
      pack_element(args, packer);
      break;
    case Layout::gather:
      pack_gather(args, packer);
      break;
    case Layout::block:
      pack_block(args, packer);
      break;
  }
  return packer.finish();
}

bool is_block_mask_cpu(const uint8_t* mask, int64_t out_features, int64_t in_features) {
  for (int64_t row = 0; row < out_features; ++row) {
    const int64_t first = row / kBlockRows * kBlockRows;
    if (std::memcmp(mask + row * in_features, mask + first * in_features, in_features) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace simmim

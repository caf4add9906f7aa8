#include <algorithm>
#include <vector>

#include "float_vector.h"
#include "masked_linear.h"

namespace simmim {
namespace {

template <typename Bits>
void mask_weight(const MaskWeightArgs& args, int64_t begin, int64_t end) {
  const Bits* weight = static_cast<const Bits*>(args.weight);
  Bits* masked = static_cast<Bits*>(args.masked);
  for (int64_t i = begin; i < end; ++i) {
    masked[i] = weight[i] & static_cast<Bits>(-static_cast<Bits>(args.mask[i]));
  }
}

template <typename Bits>
bool all_finite(const AllFiniteArgs& args) {
  constexpr int64_t kBlock = 4096;  // looked at without a branch
  const Bits* values = static_cast<const Bits*>(args.values);
  const Bits exponent = static_cast<Bits>(args.exponent_bits);
  for (int64_t begin = 0; begin < args.count; begin += kBlock) {
    Bits special = 0;
    for (int64_t i = begin; i < std::min(begin + kBlock, args.count); ++i) {
      special |= static_cast<Bits>((values[i] & exponent) == exponent);
    }
    if (special) return false;
  }
  return true;
}

// The dot products of one row of grad with `count` rows of x, all of them `width` long.
template <int N, int count>
[[gnu::always_inline]] inline void dot_products(const float* grad, const float* x,
                                                const int32_t* columns, int64_t width,
                                                float* product) {
  Vec<N> sums[count] = {};
  for (int64_t lane = 0; lane < width; lane += N) {
    const Vec<N> g = load<N>(grad + lane);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      sums[i] += g * load<N>(x + columns[i] * width + lane);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) product[columns[i]] = sum<N>(sums[i]);
}

template <int N>
[[gnu::always_inline]] inline void sampled_product(const SampledProductArgs& args, int64_t begin,
                                                   int64_t end) {
  constexpr int kUnroll = 8;  // as many accumulators as hide the latency of a multiply-add
  std::vector<int32_t> columns(args.in_features);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* mask = args.mask + row * args.in_features;
    float* product = args.product + row * args.in_features;
    int64_t kept = 0;
    for (int64_t i = 0; i < args.in_features; ++i) {
      columns[kept] = static_cast<int32_t>(i);
      kept += mask[i];
    }
    std::fill_n(product, args.in_features, 0.0f);
    const float* grad = args.grad + row * args.width;
    int64_t i = 0;
    for (; i + kUnroll <= kept; i += kUnroll) {
      dot_products<N, kUnroll>(grad, args.x, columns.data() + i, args.width, product);
    }
    for (; i < kept; ++i) {
      dot_products<N, 1>(grad, args.x, columns.data() + i, args.width, product);
    }
  }
}

template <int N>
[[gnu::always_inline]] inline void transpose_blocks(const TransposeArgs& args, int64_t begin,
                                                    int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block * kBatchLanes;
    transpose_into<N>(args.source + row * args.columns, args.columns,
                      std::min(kBatchLanes, args.rows - row), args.columns, args.target + row,
                      args.width, kBatchLanes);
  }
}

}  // namespace

SIMMIM_VECTOR_LAUNCHER(sampled_product, SampledProductArgs)
SIMMIM_VECTOR_LAUNCHER(transpose_blocks, TransposeArgs)

void mask_weight_cpu(const MaskWeightArgs& args, int64_t begin, int64_t end) {
  switch (args.item_size) {
    case 2:
      return mask_weight<uint16_t>(args, begin, end);
    case 4:
      return mask_weight<uint32_t>(args, begin, end);
    default:
      return mask_weight<uint64_t>(args, begin, end);
  }
}

bool all_finite_cpu(const AllFiniteArgs& args) {
  switch (args.item_size) {
    case 2:
      return all_finite<uint16_t>(args);
    case 4:
      return all_finite<uint32_t>(args);
    default:
      return all_finite<uint64_t>(args);
  }
}

}  // namespace simmim

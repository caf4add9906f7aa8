#include <algorithm>
#include <vector>

#include "float_vector.h"
#include "mask_bits.h"
#include "masked_linear.h"

namespace simmim {
namespace {

template <typename Bits>
void mask_weight(const MaskWeightArgs& args, int64_t begin, int64_t end) {
  const Bits* weight = static_cast<const Bits*>(args.weight);
  Bits* masked = static_cast<Bits*>(args.masked);
  for (int64_t i = begin; i < end; ++i) {
    masked[i] = weight[i] & static_cast<Bits>(-static_cast<Bits>(args.mask[i] != 0));
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

// The dot products of one row of grad with N rows of x, all of them `width` long.
template <int N>
[[gnu::always_inline]] inline Vec<N> dot_products(const float* grad, const float* x,
                                                  const int32_t* columns, int64_t width) {
  constexpr int kChains = N < 8 ? N : 8;  // as many as hide the latency of a multiply-add
  Vec<N> sums[N];
#pragma GCC unroll 2
  for (int first = 0; first < N; first += kChains) {
    Vec<N> chains[kChains] = {};
    for (int64_t lane = 0; lane < width; lane += N) {
      const Vec<N> g = load<N>(grad + lane);
#pragma GCC unroll 8
      for (int i = 0; i < kChains; ++i) {
        chains[i] += g * load<N>(x + columns[first + i] * width + lane);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) sums[first + i] = chains[i];
  }
  transpose<N>(sums);
#pragma GCC unroll 4
  for (int half = N / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

template <int N>
[[gnu::always_inline]] inline void sampled_product(const SampledProductArgs& args, int64_t begin,
                                                   int64_t end) {
  std::vector<int32_t> columns(args.in_features + N);
  for (int64_t row = begin; row < end; ++row) {
    float* product = args.product + row * args.in_features;
    int64_t kept = 0;
    for_each_kept(args.mask + row * args.in_features, args.in_features,
                  [&](int64_t i) { columns[kept++] = static_cast<int32_t>(i); });
    std::fill_n(columns.begin() + kept, N, 0);  // multiplied, to fill the vector, and dropped
    std::fill_n(product, args.in_features, 0.0f);
    for (int64_t i = 0; i < kept; i += N) {
      float dots[N];
      store<N>(dots,
               dot_products<N>(args.grad + row * args.width, args.x, &columns[i], args.width));
      for (int64_t k = i; k < std::min(i + N, kept); ++k) product[columns[k]] = dots[k - i];
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

int64_t count_mask_cpu(const uint8_t* mask, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 255;  // whose count a byte holds, so that bytes are added as vectors
  int64_t kept = 0;
  for (; begin < end; begin += kBlock) {
    uint8_t here = 0;
    for (int64_t i = begin; i < std::min(begin + kBlock, end); ++i) here += mask[i] != 0;
    kept += here;
  }
  return kept;
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

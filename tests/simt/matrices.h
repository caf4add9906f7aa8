// Operands of linear layers: weights, masks and inputs, small whole numbers so that sums are exact
// in any order and any type.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "values.h"

namespace simt {

template <>
inline double stored(float value) {
  return value;
}

template <typename Stored>
const char* type_name() {
  if constexpr (std::is_same_v<Stored, simmim::Half>) return "float16";
  if constexpr (std::is_same_v<Stored, simmim::BFloat16>) return "bfloat16";
  return sizeof(Stored) == 4 ? "float32" : "float64";
}

// -2 to 2: sums of a few hundred products are whole numbers that float16 and bfloat16 hold, or
// round as they round every float.
template <typename Stored>
std::vector<Stored> whole_numbers(int64_t count, std::mt19937& random) {
  std::vector<Stored> values(count);
  for (auto& value : values) value = stored<Stored>(static_cast<float>(random() % 5) - 2);
  return values;
}

inline std::vector<uint8_t> mask_of(int64_t count, double density, std::mt19937& random) {
  std::vector<uint8_t> mask(count);
  for (auto& kept : mask) kept = std::bernoulli_distribution(density)(random);
  return mask;
}

// Whether y is what a sum rounds to.
template <typename Stored>
bool is_rounded(Stored y, double sum) {
  const auto wanted = static_cast<double>(stored<Stored>(static_cast<float>(sum)));
  const auto got = static_cast<double>(y);
  if (std::isnan(wanted)) return std::isnan(got);
  // Truncation, as stored() does it for bfloat16, is one step from rounding at most.
  return got == wanted || std::abs(got - sum) <= std::abs(sum) / 128;
}

// sum over the kept i of w[o, i] x[b, i], + bias[o]: what every product must give.
template <typename Stored>
double kept_sum(const Stored* x, const Stored* weight, const uint8_t* mask, int64_t stride,
                int64_t inputs) {
  double sum = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    if (mask[i * stride]) sum += double(weight[i * stride]) * double(x[i]);
  }
  return sum;
}

}  // namespace simt

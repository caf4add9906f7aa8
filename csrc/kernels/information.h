// Entropies of a pair of variables combined into the quantity that was asked for.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace simmim {

enum class Quantity : int32_t {
  joint_entropy,        // H(X,Y)
  conditional_entropy,  // H(X|Y) = H(X,Y) - H(Y)
  mutual_information,   // I(X;Y) = H(X) + H(Y) - H(X,Y)
};

// What mutual information is divided by: a function of H(X) and H(Y).
enum class Normalization : int32_t { none, minimum, maximum, arithmetic, geometric };

struct Information {
  Quantity quantity = Quantity::mutual_information;
  Normalization normalization = Normalization::none;
  bool nonnegative = true;   // plug-in: what rounding leaves below 0 is 0
  double nats_per_unit = 1;  // ln(base) of the logarithm of the results
};

SIMMIM_HD double normalizer(Normalization normalization, double x, double y) {
  switch (normalization) {
    case Normalization::minimum:
      return x < y ? x : y;
    case Normalization::maximum:
      return x < y ? y : x;
    case Normalization::arithmetic:
      return (x + y) / 2;
    default:
      return sqrt(x * y);
  }
}

// From H(X), H(Y) and H(X,Y) in nats. Symmetric in x and y to the last bit, where the quantity is.
SIMMIM_HD float information(const Information& info, double x, double y, double joint) {
  if (info.quantity == Quantity::joint_entropy) {
    return static_cast<float>(joint / info.nats_per_unit);
  }
  const bool conditional = info.quantity == Quantity::conditional_entropy;
  double value = conditional ? joint - y : (x + y) - joint;
  if (info.nonnegative && value < 0) value = 0;
  if (info.normalization == Normalization::none) {
    return static_cast<float>(value / info.nats_per_unit);
  }
  // What rounding leaves of an entropy that is 0; a single other among 2^40 samples has 2e-11.
  constexpr double kRounding = 1e-12;
  if (x < kRounding || y < kRounding) return 0;
  return static_cast<float>(value / normalizer(info.normalization, x, y));
}

}  // namespace simmim

// Vectors as the compiler's vector extension has them, and memory that is aligned for them.
#pragma once

#include <cstdint>

namespace simmim {

template <typename Element, int kCount>
struct VectorOf {
  typedef Element type __attribute__((vector_size(sizeof(Element) * kCount)));
};
template <typename Element, int kCount>
using vector_of = typename VectorOf<Element, kCount>::type;

// What arrays of vectors are allocated as: the alignment of a vector type depends on the target.
struct alignas(64) CacheLine {
  unsigned char bytes[64];
};

template <typename Vector>
constexpr int64_t lines_of(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(Vector)) + 63) / 64;
}

}  // namespace simmim

// The few instructions that C++ has no words for; tests/simt has the same in plain C++.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"

namespace simmim {

#ifdef __CUDACC__

// Copies 16 bytes to shared memory while the thread goes on. Both lie on a multiple of 16 bytes.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
// Closes a group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until all but the last kGroups groups of this thread have arrived.
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// sums[16 rows, 8 columns] += over 256 bits, popcount(a[row] & b[column]), by the lanes of a warp.
// Lane 4 g + t holds of a the word t of row g (0) and of row g + 8 (1), and the word t + 4 of the
// same (2, 3); of b those of column g (0, 1); and of sums the columns 2 t and 2 t + 1 of row g (0,
// 1) and of row g + 8 (2, 3).
__device__ __forceinline__ void mma_and_popc(int32_t (&sums)[4], const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sums[16 rows, 8 columns] += a[16 rows, 32] b[32, 8 columns] of bytes 0..255, by the lanes of a
// warp. Lane 4 g + t holds of a the bytes 4 t to 4 t + 3 of row g (.x) and of row g + 8 (.y), and 4
// t + 16 to 4 t + 19 of the same (.z, .w), of b those of column g (.x, .y), and of sums the columns
// 2 t and 2 t + 1 of row g (0, 1) and of row g + 8 (2, 3).
__device__ __forceinline__ void mma_bytes(int32_t (&sums)[4], const uint4& a, const uint2& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// Four of the 8 bytes of a table, all below 128: those at the places that the lower 16 bits hold, 4
// bits each, or 0 where a place is 8 or more.
__device__ __forceinline__ uint32_t bytes_at(const uint2& table, uint32_t places) {
  uint32_t bytes;  // a place's fourth bit asks for the byte's sign in all its bits
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(table.x), "r"(table.y), "r"(places));
  return bytes;
}

// sums[16 rows, 8 columns] += a[16 rows, 16] b[16, 8 columns], by the lanes of a warp. Lane 4 g + t
// holds of a the values 2 t and 2 t + 1 of row g (0) and of row g + 8 (1), and 2 t + 8 and 2 t + 9
// of the same (2, 3); of b those of column g (0, 1); and of sums the columns 2 t and 2 t + 1 of row
// g (0, 1) and of row g + 8 (2, 3).
template <typename Stored>
__device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1);
#define SIMMIM_MMA(Stored, type)                                                        \
  template <>                                                                           \
  __device__ __forceinline__ void mma<Stored>(float (&sums)[4], const uint32_t (&a)[4], \
                                              uint32_t b0, uint32_t b1) {               \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));       \
  }
SIMMIM_MMA(BFloat16, "bf16")
SIMMIM_MMA(Half, "f16")
#undef SIMMIM_MMA

// Matrices [8, 8] of 16-bit values, transposed: row r of matrix m is the 16 bytes of shared memory
// that lane 8 m + r points to. Lane 4 g + t gets of each the values g of the rows 2 t and 2 t + 1.
__device__ __forceinline__ void load_transposed(uint32_t (&matrices)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(from));
}

// The same, not transposed: lane 4 g + t gets of each the values 2 t and 2 t + 1 of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(from)
               : "memory");
}

// 16-bit values that follow each other in shared memory.
class SharedValues {
 public:
  __device__ __forceinline__ explicit SharedValues(const void* first)
      : at_(static_cast<uint32_t>(__cvta_generic_to_shared(first))) {}
  // The next of them where `wanted` is not 0, else 0: two predicated instructions, where C++ takes
  // three.
  __device__ __forceinline__ uint32_t next(uint32_t wanted) {
    uint32_t value = 0;
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.shared.u16 %0, [%1]; @p add.u32 %1, %1, 2; }"
        : "+r"(value), "+r"(at_)
        : "r"(wanted));
    return value;
  }

 private:
  uint32_t at_;
};

// A table in shared memory. Its address comes by a shuffle, or else the compiler works it out anew
// for every entry.
class SharedTable {
 public:
  __device__ __forceinline__ explicit SharedTable(const int64_t* first)
      : at_(__shfl_sync(~0u, static_cast<uint32_t>(__cvta_generic_to_shared(first)), 0)) {}
  __device__ __forceinline__ int64_t operator[](int32_t i) const {
    int64_t value;
    asm("ld.shared.s64 %0, [%1];" : "=l"(value) : "r"(at_ + 8 * i));
    return value;
  }

 private:
  uint32_t at_;
};

#else

using SharedTable = const int64_t*;

class SharedValues {
 public:
  explicit SharedValues(const void* first) : at_(static_cast<const uint16_t*>(first)) {}
  uint32_t next(uint32_t wanted) { return wanted != 0 ? *at_++ : 0; }

 private:
  const uint16_t* at_;
};

inline void load_transposed(uint32_t (&matrices)[4], const void* row) {
  simt::load_transposed(matrices, static_cast<const uint16_t*>(row));
}
inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  simt::load_matrices(matrices, static_cast<const uint16_t*>(row));
}
inline void copy_async_16(void* shared, const void* global) {
  simt::copy_async(shared, global, 16);
}
inline void copy_async_commit() { simt::copy_async_commit(); }
template <int kGroups>
void copy_async_wait() {
  simt::copy_async_wait(kGroups);
}
inline void mma_and_popc(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t fragment[6] = {a[0], a[1], a[2], a[3], b0, b1};
  simt::mma_and_popc(sums, fragment);
}
inline void mma_bytes(int32_t (&sums)[4], const uint4& a, const uint2& b) {
  const uint32_t fragment[6] = {a.x, a.y, a.z, a.w, b.x, b.y};
  simt::mma_bytes(sums, fragment);
}
inline uint32_t bytes_at(const uint2& table, uint32_t places) {
  const uint64_t bytes = uint64_t{table.y} << 32 | table.x;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t place = places >> 4 * i & 15;
    if (place < 8) found |= static_cast<uint32_t>(bytes >> 8 * place & 255) << 8 * i;
  }
  return found;
}
template <typename Stored>
void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t fragment[6] = {a[0], a[1], a[2], a[3], b0, b1};
  simt::mma(sums, fragment, [](uint16_t bits) { return static_cast<float>(Stored{bits}); });
}

#endif

}  // namespace simmim

// AMX emulated: included before every source, this stands for the tile instructions that the
// kernels use, and for the questions whether the CPU and the operating system have them. Tiles are
// C++ arrays, so AddressSanitizer sees what they read and write; an instruction that faults on a
// real CPU ends the process with a word.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volumes 1 (chapter 18) and
// 2A. Products here add up in that order, without its flushing of denormals.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx {

constexpr int kTiles = 8, kRows = 16, kBytes = 64;

struct Tile {
  int rows = 0, bytes = 0;  // 0 until it is configured
  unsigned char data[kRows][kBytes];
};
inline thread_local Tile tiles[kTiles];
inline thread_local int64_t products = 0;  // instructions so far

[[noreturn]] inline void fault(const char* instruction, const char* rule) {
  std::fprintf(stderr, "AMX, emulated: %s: %s\n", instruction, rule);
  std::abort();
}

inline Tile& configured(const char* instruction, int tile) {
  if (tile < 0 || tile >= kTiles || tiles[tile].rows == 0) fault(instruction, "no such tile");
  return tiles[tile];
}

inline void configure(const void* config) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } wanted;
  static_assert(sizeof wanted == 64);
  std::memcpy(&wanted, config, sizeof wanted);
  if (wanted.palette != 1 || wanted.start_row != 0) fault("ldtilecfg", "palette or first row");
  for (const uint8_t byte : wanted.reserved) {
    if (byte != 0) fault("ldtilecfg", "reserved bytes are not 0");
  }
  for (int t = 0; t < 16; ++t) {
    const int rows = wanted.rows[t], bytes = wanted.bytes[t];
    if (rows > kRows || bytes > kBytes || (rows == 0) != (bytes == 0)) fault("ldtilecfg", "sizes");
    if (t >= kTiles && rows != 0) fault("ldtilecfg", "more tiles than there are");
    if (t >= kTiles) continue;
    tiles[t].rows = rows;
    tiles[t].bytes = bytes;
    std::memset(tiles[t].data, 0, sizeof tiles[t].data);
  }
}

inline void release() {
  for (Tile& tile : tiles) tile.rows = tile.bytes = 0;
}

inline void zero(int tile) {
  Tile& to = configured("tilezero", tile);
  std::memset(to.data, 0, sizeof to.data);
}

inline void load(int tile, const void* base, int64_t stride) {
  Tile& to = configured("tileloadd", tile);
  for (int row = 0; row < to.rows; ++row) {
    std::memcpy(to.data[row], static_cast<const char*>(base) + row * stride, to.bytes);
  }
}

inline void store(int tile, void* base, int64_t stride) {
  const Tile& from = configured("tilestored", tile);
  for (int row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, from.data[row], from.bytes);
  }
}

inline float bfloat16_at(const Tile& tile, int row, int item) {
  uint16_t high;
  std::memcpy(&high, tile.data[row] + item * sizeof high, sizeof high);
  const uint32_t bits = uint32_t{high} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// sums [m, n] += a [m, k, 2] b [k, n, 2], bfloat16 to float32.
inline void multiply(int sums, int a, int b) {
  Tile& to = configured("tdpbf16ps", sums);
  const Tile& left = configured("tdpbf16ps", a);
  const Tile& right = configured("tdpbf16ps", b);
  if (sums == a || sums == b || a == b) fault("tdpbf16ps", "tiles must differ");
  if (left.rows != to.rows || right.bytes != to.bytes || left.bytes != 4 * right.rows) {
    fault("tdpbf16ps", "sizes do not fit");
  }
  ++products;
  for (int m = 0; m < to.rows; ++m) {
    for (int n = 0; n < to.bytes / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < right.rows; ++k) {
        even += bfloat16_at(left, m, 2 * k) * bfloat16_at(right, k, 2 * n);
        odd += bfloat16_at(left, m, 2 * k + 1) * bfloat16_at(right, k, 2 * n + 1);
      }
      std::memcpy(&sum, to.data[m] + 4 * n, sizeof sum);
      sum += even + odd;
      std::memcpy(to.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

// arch_prctl: the operating system lets the process use tiles.
template <typename... Argument>
long grant(Argument...) {
  return 0;
}

}  // namespace amx

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig amx::configure
#define _tile_release amx::release
#define _tile_zero amx::zero
#define _tile_loadd amx::load
#define _tile_stored amx::store
#define _tile_dpbf16ps amx::multiply
#define __get_cpuid_count(leaf, subleaf, eax, ebx, ecx, edx) \
  (*(eax) = *(ebx) = *(ecx) = 0, *(edx) = ~0u, 1)
#define syscall amx::grant

// Counts of two variables over the same samples, in the shared memory of a block: of any number of
// rows, as many at a time as fit.
#pragma once

#include <cstdint>

#include "entropy.h"
#include "launch.cuh"
#include "totals.cuh"

namespace simmim {

constexpr int kTableThreads = 256;
constexpr int64_t kMaxTableCells = 24000;  // 96,000 bytes: two such blocks fit one multiprocessor
constexpr size_t kTotalsBytes = kTableThreads / kWarpLanes * sizeof(double);

// The cells to hold at a time, for tables of up to `rows` rows, and the bytes that this takes.
inline int64_t table_capacity(int64_t rows, int64_t columns) {
  return rows > kMaxTableCells / columns ? kMaxTableCells : rows * columns;
}
inline size_t table_bytes(int64_t capacity) {
  return kTotalsBytes + static_cast<size_t>(capacity) * sizeof(uint32_t);
}

// Samples: samples.each(add) calls add(row, column) for every sample of the calling thread that
// counts. All threads of the block call every method, and all get the same.
template <typename Samples>
class BlockTable {
 public:
  __device__ BlockTable(const Samples& samples, int64_t rows, int32_t columns, int64_t capacity)
      : samples_(samples),
        rows_(rows),
        columns_(columns),
        rows_at_once_(min64(capacity / columns, rows)),
        counters_(shared_memory<uint32_t>() + kTotalsBytes / sizeof(uint32_t)) {}

  // How many samples count.
  __device__ int64_t size() const {
    int64_t size = 0;
    samples_.each([&](int64_t, int32_t) { ++size; });
    return total(size);
  }

  // Calls visit(cell, count) for every cell, row * columns + column, each in one thread.
  template <typename Visit>
  __device__ void cells(Visit&& visit) {
    for (int64_t first = 0; first < rows_; first += rows_at_once_) {
      const int64_t rows = min64(rows_at_once_, rows_ - first);
      if (!counted_) count(first, rows);
      counted_ = rows == rows_;
      for (int64_t i = threadIdx.x; i < rows * columns_; i += kTableThreads) {
        visit(first * columns_ + i, int64_t{counters_[i]});
      }
    }
  }

  // In nats, over `samples` samples, those that count.
  __device__ double entropy(const EntropyTerms& terms, int64_t samples, double alphabet) {
    return entropy_of_cells(
        terms, samples, alphabet,
        [&](auto&& visit) { cells([&](int64_t, int64_t count) { visit(count); }); },
        [](auto sum) { return total(sum); });
  }

 private:
  static __device__ int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

  template <typename T>
  static __device__ T total(T value) {
    return block_total(value, shared_memory<T>());
  }

  __device__ void count(int64_t first, int64_t rows) {
    __syncthreads();  // the last counts have been read
    for (int64_t i = threadIdx.x; i < rows * columns_; i += kTableThreads) counters_[i] = 0;
    __syncthreads();
    samples_.each([&](int64_t row, int32_t column) {
      if (row >= first && row < first + rows) {
        atomicAdd(&counters_[(row - first) * columns_ + column], 1u);
      }
    });
    __syncthreads();
  }

  const Samples& samples_;
  const int64_t rows_;
  const int32_t columns_;
  const int64_t rows_at_once_;
  uint32_t* const counters_;
  bool counted_ = false;  // whether the counters hold the whole table
};

}  // namespace simmim

// Counts of two variables over the same samples, in the shared memory of a block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "entropy.h"
#include "launch.cuh"
#include "totals.cuh"
#include "vector_load.cuh"

namespace simmim {

constexpr int kTableThreads = 256;
constexpr int64_t kMaxTableCells = 24000;   // 96,000 bytes: two such blocks fit one multiprocessor
constexpr int64_t kMostCopiedCells = 6144;  // with its copies a table leaves room for eight
constexpr size_t kTotalsBytes = kTableThreads / kWarpLanes * sizeof(double);
static_assert(kTotalsBytes + kMaxTableCells * sizeof(uint32_t) <= kLeastShared);

// Whether a table of so many rows is held whole.
inline bool holds_table(int64_t rows, int64_t columns) { return rows <= kMaxTableCells / columns; }

// The counters to have, for tables of up to `rows` rows, and the bytes that this takes.
inline int64_t table_capacity(int64_t rows, int64_t columns) {
  if (!holds_table(rows, columns)) return kMaxTableCells;
  const int64_t cells = rows * columns;
  return std::max(cells, std::min(cells * kWarpLanes, kMostCopiedCells));
}
inline size_t table_bytes(int64_t capacity) {
  return kTotalsBytes + static_cast<size_t>(capacity) * sizeof(uint32_t);
}

__device__ __forceinline__ uint32_t* table_counters() {
  return shared_memory<uint32_t>() + kTotalsBytes / sizeof(uint32_t);
}
template <typename T, typename Add = Plus>
__device__ T table_total(T value, const Add& add = {}) {
  return block_total(value, shared_memory<T>(), add);
}

// The cells of a table, or the sums of its rows or of its columns.
enum class Axis { cells, rows, columns };

// Counts whose sums are taken line by line: `count` lines, of `length` counts each.
struct Lines {
  int64_t count, step, length, stride;

  __device__ Lines(Axis axis, int64_t rows, int64_t columns)
      : count(axis == Axis::cells  ? rows * columns
              : axis == Axis::rows ? rows
                                   : columns),
        step(axis == Axis::rows ? columns : 1),
        length(axis == Axis::cells  ? 1
               : axis == Axis::rows ? columns
                                    : rows),
        stride(axis == Axis::columns ? columns : 1) {}

  // Calls visit(line, sum) for every line, each in one thread; at(i) is the count i.
  template <typename At, typename Visit>
  __device__ void each(At&& at, Visit&& visit) const {
    for (int64_t line = threadIdx.x; line < count; line += kTableThreads) {
      int64_t sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += at(line * step + i * stride);
      visit(line, sum);
    }
  }
};

// Counts the samples whose rows are among [first, first + rows), in so many copies of the table.
template <typename Samples>
__device__ void count_samples(const Samples& samples, int64_t first, int64_t rows, int32_t columns,
                              int32_t copies) {
  uint32_t* counters = table_counters();
  const auto count = static_cast<int32_t>(rows) * columns * copies;
  const int32_t copy = threadIdx.x % copies;
  __syncthreads();  // the last counts have been read
  for (int32_t i = threadIdx.x; i < count; i += kTableThreads) counters[i] = 0;
  __syncthreads();
  samples.each([&](int64_t row, int32_t column) {
    if (row < first || row >= first + rows) return;
    const int32_t cell = static_cast<int32_t>(row - first) * columns + column;
    atomicAdd(&counters[cell * copies + copy], 1u);
  });
  __syncthreads();
}

// Calls use(code...) for the calling thread's share of the samples, with the codes of each pointer,
// or 0 of a null one. They are read four at a time where they lie on whole vectors.
template <typename Use, typename... Code>
__device__ void each_sample(int64_t samples, Use&& use, const Code*... codes) {
  constexpr int kAtOnce = 4;
  const auto is_whole = [](const auto* p) {
    return reinterpret_cast<uintptr_t>(p) % (kAtOnce * sizeof *p) == 0;
  };
  if (samples % kAtOnce != 0 || !(is_whole(codes) && ...)) {
    for (int64_t i = threadIdx.x; i < samples; i += kTableThreads) {
      use(codes == nullptr ? 0 : static_cast<int32_t>(codes[i])...);
    }
    return;
  }
  for (int64_t i = threadIdx.x * kAtOnce; i < samples; i += kTableThreads * kAtOnce) {
    const auto use_all = [&](const Vector<Code, kAtOnce>&... loaded) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) use(static_cast<int32_t>(loaded[j])...);
    };
    use_all(codes == nullptr ? Vector<Code, kAtOnce>{} : load<kAtOnce>(codes + i)...);
  }
}

// Samples: samples.each(add) calls add(row, column) for every sample of the calling thread that
// counts. All threads of the block make a table and call every method, and all get the same. One
// table at a time has the shared memory.

// A table that the counters hold whole, counted when it is made.
template <typename Samples>
class HeldTable {
 public:
  __device__ HeldTable(const Samples& samples, int64_t rows, int32_t columns, int64_t capacity)
      : rows_(static_cast<int32_t>(rows)), columns_(columns) {
    // Lanes that count in the same cell wait for each other, unless each has a copy.
    while (copies_ < kWarpLanes && 2 * copies_ * rows * columns <= capacity) copies_ *= 2;
    count_samples(samples, 0, rows, columns, copies_);
    if (copies_ > 1) add_up_copies();
  }

  // How many samples count.
  __device__ int64_t size() const {
    int64_t size = 0;
    cells([&](int64_t, int64_t count) { size += count; });
    return table_total(size);
  }

  // Calls visit(cell, count) for every cell, row * columns + column, each in one thread.
  template <typename Visit>
  __device__ void cells(Visit&& visit) const {
    each(Axis::cells, visit);
  }

  // In nats, over `samples` samples, those that count.
  __device__ double entropy(Axis axis, const EntropyTerms& terms, int64_t samples,
                            double alphabet) const {
    return entropy_of_cells(
        terms, samples, alphabet,
        [&](auto&& visit) { each(axis, [&](int64_t, int64_t count) { visit(count); }); },
        [](auto sum) { return table_total(sum); });
  }

 private:
  template <typename Visit>
  __device__ void each(Axis axis, Visit&& visit) const {
    const uint32_t* counters = table_counters();
    Lines(axis, rows_, columns_)
        .each([&](int64_t cell) { return int64_t{counters[cell * copies_]}; }, visit);
  }

  __device__ void add_up_copies() {
    uint32_t* counters = table_counters();
    for (int32_t cell = threadIdx.x; cell < rows_ * columns_; cell += kTableThreads) {
      uint32_t sum = 0;  // each lane from a copy of its own on: another bank
      for (int32_t i = 0; i < copies_; ++i) {
        sum += counters[cell * copies_ + (threadIdx.x + i) % copies_];
      }
      counters[cell * copies_] = sum;
    }
    __syncthreads();
  }

  const int32_t rows_, columns_;
  int32_t copies_ = 1;
};

// The same of any number of rows: as many at a time as the counters hold, in as many passes.
template <typename Samples>
class PartedTable {
 public:
  __device__ PartedTable(const Samples& samples, int64_t rows, int32_t columns, int64_t capacity)
      : samples_(samples), rows_(rows), columns_(columns), capacity_(capacity) {}

  __device__ int64_t size() const {
    int64_t size = 0;
    samples_.each([&](int64_t, int32_t) { ++size; });
    return table_total(size);
  }

  template <typename Visit>
  __device__ void cells(Visit&& visit) const {
    each(Axis::cells, visit);
  }

  __device__ double entropy(Axis axis, const EntropyTerms& terms, int64_t samples,
                            double alphabet) const {
    return entropy_of_cells(
        terms, samples, alphabet,
        [&](auto&& visit) { each(axis, [&](int64_t, int64_t count) { visit(count); }); },
        [](auto sum) { return table_total(sum); });
  }

 private:
  // Samples as they fall into the lines of an axis.
  struct Along {
    const Samples& samples;
    Axis axis;

    template <typename Add>
    __device__ void each(Add&& add) const {
      samples.each([&](int64_t row, int32_t column) {
        add(axis == Axis::columns ? 0 : row, axis == Axis::rows ? 0 : column);
      });
    }
  };

  template <typename Visit>
  __device__ void each(Axis axis, Visit&& visit) const {
    const uint32_t* counters = table_counters();
    const int64_t all = axis == Axis::columns ? 1 : rows_;
    const int32_t columns = axis == Axis::rows ? 1 : columns_;
    const int64_t at_once = capacity_ / columns;
    for (int64_t first = 0; first < all; first += at_once) {
      const int64_t rows = first + at_once < all ? at_once : all - first;
      count_samples(Along{samples_, axis}, first, rows, columns, 1);
      for (int64_t i = threadIdx.x; i < rows * columns; i += kTableThreads) {
        visit(first * columns + i, int64_t{counters[i]});
      }
    }
  }

  const Samples& samples_;
  const int64_t rows_;
  const int32_t columns_;
  const int64_t capacity_;
};

template <bool kHeld, typename Samples>
using BlockTable = std::conditional_t<kHeld, HeldTable<Samples>, PartedTable<Samples>>;

}  // namespace simmim

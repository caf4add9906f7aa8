// The products of a tile: on tensor cores, or of the kept weights alone.
#pragma once

#include "tile_list.cuh"
#include "vector_load.cuh"

namespace simmim {

// What a warp multiplies a tile by: x from its lane's first column on.
template <typename Stored>
struct Samples {
  const Stored* x;  // of the first sample
  int64_t columns;  // from one sample to the next
  int count;        // of the samples that there are, as far as the kernel takes them

  __device__ Samples from(int sample) const {
    return {x + sample * columns, columns, count - sample};
  }
};

// The products of kBatchTile samples by one lane's weights, of which only the kept ones see x.
template <typename Stored>
struct ExactSums {
  float sums[2][kBatchTile] = {};  // of rows g and g + 8

  __device__ __forceinline__ void add(uint32_t word, const Stored* values,
                                      const Samples<Stored>& samples) {
    float weights[2 * kLaneColumns];
#pragma unroll
    for (int bit = 0; bit < 2 * kLaneColumns; ++bit) {
      weights[bit] = 0;
      if (word >> bit & 1) weights[bit] = static_cast<float>(*values++);
    }
#pragma unroll
    for (int b = 0; b < kBatchTile; ++b) {
      if (b >= samples.count) break;
      constexpr int kVector = kPackedUnit / sizeof(Stored);
#pragma unroll
      for (int column = 0; column < kLaneColumns; column += kVector) {
        const auto x = load<kVector>(samples.x + b * samples.columns + column);
#pragma unroll
        for (int i = 0; i < 2 * kVector; ++i) {
          const int half = i / kVector, bit = half * kLaneColumns + column + i % kVector;
          if (word >> bit & 1) sums[half][b] += weights[bit] * static_cast<float>(x[i % kVector]);
        }
      }
    }
  }

  // The same, slower and in fewer registers.
  __device__ __forceinline__ void add_one_by_one(uint32_t word, const Stored* values,
                                                 const Samples<Stored>& samples) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll 1
      for (uint32_t bits = word >> half * kLaneColumns & 0xffff; bits != 0; bits &= bits - 1) {
        add_one(half, __ffs(static_cast<int>(bits)) - 1, *values++, samples);
      }
    }
  }
  // One weight, of row g or, with half = 1, g + 8.
  __device__ __forceinline__ void add_one(int half, int column, Stored weight,
                                          const Samples<Stored>& samples) {
    const Stored* x = samples.x + column;
#pragma unroll
    for (int b = 0; b < kBatchTile; ++b) {
      if (b >= samples.count) break;
      const float product = static_cast<float>(weight) * static_cast<float>(x[b * samples.columns]);
      // Registers have no index known at run time only.
      if (half == 0) sums[0][b] += product;
      if (half == 1) sums[1][b] += product;
    }
  }

  // The sums over the lanes of a row, as mma leaves them.
  __device__ __forceinline__ void total(float (&result)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int b = 0; b < kBatchTile; ++b) {
        const float sum = warp_total(sums[half][b], 4);
        if (static_cast<int>(threadIdx.x % 4) == b / 2) result[2 * half + b % 2] = sum;
      }
    }
  }
};

// A lane's weights as four steps' fragments: those of a step are 4 neighbours of each of its rows.
__device__ __forceinline__ void decode(uint32_t word, const void* values,
                                       uint32_t (&fragments)[4][4]) {
  SharedValues stream(values);
#pragma unroll
  for (int bit = 0; bit < 2 * kLaneColumns; bit += 2) {
    const uint32_t low = stream.next(word & (1u << bit)), high = stream.next(word & (2u << bit));
    const int half = bit / kLaneColumns, column = bit % kLaneColumns;
    fragments[column / 4][half + column % 4 / 2 * 2] = low | high << 16;
  }
}

// Loads a lane's columns of its samples, one of every kBatchTile; of the last for what is beyond,
// which nobody writes.
template <typename Stored>
class SampleLoads {
 public:
  __device__ __forceinline__ explicit SampleLoads(const Samples<Stored>& samples)
      : left_(samples.count - 1 - static_cast<int>(threadIdx.x % kWarpLanes / 4)),
        stride_(kBatchTile * samples.columns),
        next_(samples.x) {
    const int row = threadIdx.x % kWarpLanes / 4;
    next_ += (row < samples.count ? row : samples.count - 1) * samples.columns;
  }
  __device__ __forceinline__ void next(uint32_t (&x)[kLaneColumns / 2]) {
    const auto* from = reinterpret_cast<const uint4*>(next_);
    const uint4 low = from[0], high = from[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    left_ -= kBatchTile;
    if (left_ >= 0) next_ += stride_;
  }

 private:
  int left_;
  int64_t stride_;
  const Stored* next_;
};

// make_fragments(fragments): of the tile's weights.
template <typename Stored, int kBatchTiles, typename MakeFragments>
__device__ __forceinline__ void multiply(const MakeFragments& make_fragments,
                                         const Samples<Stored>& samples,
                                         float (&sums)[kBatchTiles][4]) {
  // What is asked for before the weights are decoded arrives meanwhile.
  constexpr int kAhead = kBatchTiles < 2 ? kBatchTiles : 2;
  SampleLoads<Stored> loads(samples);
  uint32_t x[kAhead][kLaneColumns / 2];
#pragma unroll
  for (int n = 0; n < kAhead; ++n) loads.next(x[n]);
  uint32_t weights[4][4];
  make_fragments(weights);
#pragma unroll
  for (int n = 0; n < kBatchTiles; ++n) {
    if (n * kBatchTile >= samples.count) break;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      mma<Stored>(sums[n], weights[step], x[n % kAhead][2 * step], x[n % kAhead][2 * step + 1]);
    }
    if (n + kAhead < kBatchTiles) loads.next(x[n % kAhead]);
  }
}

// The products of one tile, which stream has as its tile i.
template <typename Stored, int kBatchTiles>
__device__ __forceinline__ void multiply_tile(const TileStream<BitsForm<Stored>>& stream, int i,
                                              const Samples<Stored>& samples,
                                              float (&sums)[kBatchTiles][4]) {
  const unsigned char* stage = stream.stage(i);
  const uint32_t word = reinterpret_cast<const uint32_t*>(stage)[threadIdx.x % kWarpLanes];
  const auto* values =
      reinterpret_cast<const Stored*>(stage + kWordUnits * kPackedUnit) + values_before(word);
  multiply([&](uint32_t (&weights)[4][4]) { decode(word, values, weights); }, samples, sums);
}
template <typename Stored, int kBatchTiles>
__device__ __forceinline__ void multiply_tile(const TileStream<ListForm<Stored>>& stream, int i,
                                              const Samples<Stored>& samples,
                                              float (&sums)[kBatchTiles][4]) {
  multiply([&](uint32_t (&weights)[4][4]) { decode(stream, i, weights); }, samples, sums);
}

// The same of kept weights alone, slower and in fewer registers, for kBatchTile samples.
template <typename Stored>
__device__ __forceinline__ void add_kept(const TileStream<BitsForm<Stored>>&, const uint4* tile,
                                         const Samples<Stored>& samples, ExactSums<Stored>& exact) {
  const uint32_t word = reinterpret_cast<const uint32_t*>(tile)[threadIdx.x % kWarpLanes];
  const auto* values = reinterpret_cast<const Stored*>(tile + kWordUnits) + values_before(word);
  exact.add_one_by_one(word, values, samples);
}
template <typename Stored>
__device__ __forceinline__ void add_kept(const TileStream<ListForm<Stored>>&, const uint4* tile,
                                         const Samples<Stored>& samples, ExactSums<Stored>& exact) {
  const int lane = threadIdx.x % kWarpLanes, entries = steps_of(tile) * kWarpLanes;
#pragma unroll 1
  for (int slot = 0; slot < entries; ++slot) {
    const uint32_t entry = word_of(tile, slot);
    if (entry >> 16 == kNowhere) continue;
    const TilePlace place = place_at(static_cast<int>(entry >> 16));
    if (place.row % 8 * 4 + place.column / kLaneColumns != lane) continue;
    const Stored weight{static_cast<uint16_t>(entry)};
    exact.add_one(place.row / 8, place.column % kLaneColumns, weight, samples);
  }
}

// The tiles of a stream times kBatchTile samples, once more and from global memory: where the
// tensor cores' sums are not finite, x may hold what masked weights must not see.
template <typename Form, typename Stored>
__device__ __forceinline__ void multiply_exactly(const TileStream<Form>& stream,
                                                 const Samples<Stored>& samples,
                                                 float (&result)[4]) {
  ExactSums<Stored> exact;
#pragma unroll 1
  for (int i = 0; i < stream.count; ++i) {
    const int64_t columns = int64_t{i} * stream.step * kPackedColumns;
    add_kept(stream, stream.tile(i), {samples.x + columns, samples.columns, samples.count}, exact);
  }
  exact.total(result);
}

template <typename Form, typename Stored, int kBatchTiles>
__device__ __forceinline__ void repair(const TileStream<Form>& stream,
                                       const Samples<Stored>& samples,
                                       float (&sums)[kBatchTiles][4]) {
  unsigned special = 0;
#pragma unroll
  for (int n = 0; n < kBatchTiles; ++n) {
    const float sum = sums[n][0] + sums[n][1] + sums[n][2] + sums[n][3];
    if (__any_sync(~0u, !(sum - sum == 0))) special |= 1u << n;
  }
#pragma unroll 1
  for (; special != 0; special &= special - 1) {
    const int n = __ffs(special) - 1;
    float exact[4];
    multiply_exactly(stream, samples.from(n * kBatchTile), exact);
#pragma unroll
    for (int i = 0; i < 4 * kBatchTiles; ++i) {  // registers have no index known at run time only
      if (i / 4 == n) sums[i / 4][i % 4] = exact[i % 4];
    }
  }
}

}  // namespace simmim

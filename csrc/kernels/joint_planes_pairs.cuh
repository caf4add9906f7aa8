// The information of pairs whose planes a warp has counted.
#pragma once

#include "joint_planes_tile.cuh"
#include "pair_result.cuh"

namespace simmim {

// Whether anybody waits for a pair of features.
__device__ __forceinline__ bool is_wanted(const PairwiseInformationArgs& args, int64_t x,
                                          int64_t y) {
  return x < args.codes.x_features && y < args.codes.y_features && !(args.symmetric && y < x);
}

// -----------------------------------------------------------------------------------------
// pairs without gaps, and an estimator that takes sums: from the registers

// The terms of counts below the size of the whole table, of which the most frequent are at hand.
struct Terms {
  static constexpr int kNear = 1024;

  SharedTable near;
  const int64_t* all;

  __device__ __forceinline__ int64_t operator()(int32_t count) const {
    return count < kNear ? near[count] : __ldg(all + count);
  }
};

// Whether finish_pairs knows all that the warp's pairs need.
template <int kPlanes>
__device__ bool sums_suffice(const PairwiseInformationArgs& args, int64_t first_x,
                             int64_t first_y) {
  const int64_t samples = args.codes.samples;
  if (!takes_sums(args.terms.estimator) || samples >= args.terms.table_size) return false;
  const int feature = threadIdx.x % kWarpLanes;
  bool gaps = false;
  if (feature < kWarpTile / kPlanes) {
    const int64_t x = first_x + feature, y = first_y + feature;
    gaps = (x < args.codes.x_features && args.x_valid[x] < samples) ||
           (y < args.codes.y_features && args.y_valid[y] < samples);
  }
  return !__any_sync(~0u, gaps);
}

// Adds up sums over each kLanes neighbours of a warp. A lane gets one of the totals: the first
// lanes that of the first sum, and so on.
template <int kSums, int kLanes = kWarpLanes>
__device__ __forceinline__ int64_t deal_totals(const int64_t (&sums)[kSums]) {
  if constexpr (kSums == 1) {
    return warp_total(sums[0], kLanes);
  } else {
    const bool upper = threadIdx.x & kLanes / 2;
    int64_t halves[kSums / 2];  // what the lane's half of the lanes goes on with
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) {
      const int64_t low = sums[i], high = sums[i + kSums / 2];
      halves[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, kLanes / 2);
    }
    return deal_totals<kSums / 2, kLanes / 2>(halves);
  }
}

// The pairs of which a warp adds up the counts at a time: as many as it has lanes, or all.
template <int kPlanes>
struct PairBatch {
  static constexpr int kRows = kPlanes < 16 ? kRowFragments / 2 : kRowFragments;
  static constexpr int kDown = kRows * 16 / kPlanes, kAcross = kWarpTile / kPlanes;
  static constexpr int kPairs = kDown * kAcross;
  static constexpr int kLanes = kWarpLanes / kPairs;  // that get the same pair

  // The sum of value(count) over the cells of the lane's pair, from row `first` of fragments on.
  template <typename Value>
  static __device__ __forceinline__ int64_t total(const PlaneCounts& counts, int first,
                                                  const Value& value) {
    int64_t sums[kPairs] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int down = (16 * i + 8 * (k / 2)) / kPlanes, across = 8 * j / kPlanes;
          sums[down * kAcross + across] += value(counts[first + i][j][k]);
        }
      }
    }
    return deal_totals(sums);
  }
};

template <int kPlanes>
__device__ __forceinline__ void finish_pairs(const PairwiseInformationArgs& args,
                                             const Terms& terms, const PlaneCounts& counts,
                                             int64_t first_x, int64_t first_y,
                                             int64_t* first_fault) {
  using Batch = PairBatch<kPlanes>;
  const int lane = threadIdx.x % kWarpLanes, pair = lane / Batch::kLanes;
#pragma unroll
  for (int first = 0; first < kRowFragments; first += Batch::kRows) {
    CellSums sums;
    sums.terms = Batch::total(counts, first, terms);
    if (args.terms.estimator == Estimator::miller_madow) {
      sums.observed = Batch::total(counts, first, [](int32_t count) { return int64_t{count > 0}; });
    }
    const int64_t x = first_x + first * 16 / kPlanes + pair / Batch::kAcross;
    const int64_t y = first_y + pair % Batch::kAcross;
    if (lane % Batch::kLanes == 0 && is_wanted(args, x, y)) {
      PairEntropies result = entropies_without_gaps(args, x, y);
      result.joint = entropy_of_sums(args.terms, result.samples, sums);
      store_pair(args, x, y, result, first_fault);
    }
  }
}

// -----------------------------------------------------------------------------------------
// any pairs: by way of shared memory

// Counts on their way from registers to the threads that own pairs: whole features.
constexpr int kCountRow = kWarpTile + 8;  // the rows of a fragment's lanes lie in different banks
constexpr int kCountRows = kMaxPlaneBins;

// Pairs of kPlanes x kPlanes counts in a warp's rows of shared memory, each for so many lanes that
// the warp has all of them in hand.
template <int kPlanes>
struct PairLanes {
  static constexpr int kRows = kPlanes < 16 ? 16 : kPlanes;  // whole fragments, whole features
  static constexpr int kAcross = kWarpTile / kPlanes;
  static constexpr int kWidth = kWarpLanes / (kRows / kPlanes * kAcross);  // lanes of a pair

  const uint32_t* counts;  // of the pair
  int lane;                // of its kWidth
  int32_t x_bins, y_bins;

  __device__ PairLanes(const uint32_t* warp_counts, const CodePair& codes)
      : lane(threadIdx.x % kWidth), x_bins(codes.x_bins), y_bins(codes.y_bins) {
    counts = warp_counts + down() * kPlanes * kCountRow + across() * kPlanes;
  }
  // Where the pair lies among those in hand.
  __device__ static int down() { return threadIdx.x % kWarpLanes / kWidth / kAcross; }
  __device__ static int across() { return threadIdx.x % kWarpLanes / kWidth % kAcross; }

  template <typename Visit>
  __device__ void cells(Visit&& visit) const {
    for (int row = 0; row < x_bins; ++row) {
      for (int column = lane; column < y_bins; column += kWidth) {
        visit(int64_t{counts[row * kCountRow + column]});
      }
    }
  }
  // The sums of `lines` lines of `length` counts.
  template <typename Visit>
  __device__ void lines(int lines, int step, int length, int stride, Visit&& visit) const {
    for (int line = lane; line < lines; line += kWidth) {
      int64_t sum = 0;
      for (int i = 0; i < length; ++i) sum += counts[line * step + i * stride];
      visit(sum);
    }
  }
};

template <int kPlanes>
__device__ void finish_pairs_in_lanes(const PairwiseInformationArgs& args,
                                      const uint32_t* warp_counts, int64_t first_x, int64_t first_y,
                                      int64_t* first_fault) {
  const PairLanes<kPlanes> pair(warp_counts, args.codes);
  const auto total = [](auto sum) { return warp_total(sum, PairLanes<kPlanes>::kWidth); };
  const int64_t x = first_x + pair.down(), y = first_y + pair.across();
  const bool wanted = is_wanted(args, x, y);
  // Lanes without a pair go along, since the others add up with them.
  PairEntropies result{0, 0, 0, 2};
  if (wanted) result = entropies_without_gaps(args, x, y);
  const bool gaps = wanted && has_gaps(args, x, y);
  if (__any_sync(~0u, gaps)) {
    int64_t samples = 0;
    pair.cells([&](int64_t count) { samples += count; });
    samples = total(samples);
    if (gaps) result.samples = samples;
#pragma unroll 1
    for (int of_x = 0; of_x < 2; ++of_x) {
      const int lines = of_x ? pair.x_bins : pair.y_bins, length = of_x ? pair.y_bins : pair.x_bins;
      const int step = of_x ? kCountRow : 1, stride = of_x ? 1 : kCountRow;
      const double nats = entropy_of_cells(
          args.terms, samples < 2 ? 2 : samples, lines,
          [&](auto&& visit) { pair.lines(lines, step, length, stride, visit); }, total);
      if (gaps) (of_x ? result.x : result.y) = nats;
    }
  }
  const double cells = static_cast<double>(pair.x_bins * pair.y_bins);
  result.joint = entropy_of_cells(
      args.terms, result.samples < 2 ? 2 : result.samples, cells,
      [&](auto&& visit) { pair.cells(visit); }, total);
  if (wanted && pair.lane == 0) store_pair(args, x, y, result, first_fault);
}

// One row of fragments, as its lanes hold it, to [16, kCountRow] in shared memory.
__device__ __forceinline__ void store_counts(const int32_t (&counts)[kColumnFragments][4],
                                             uint32_t* to) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int j = 0; j < kColumnFragments; ++j) {
    uint32_t* upper = to + lane / 4 * kCountRow + 8 * j + lane % 4 * 2;
    upper[0] = counts[j][0];
    upper[1] = counts[j][1];
    upper[8 * kCountRow] = counts[j][2];
    upper[8 * kCountRow + 1] = counts[j][3];
  }
}

// `space` [kCountRows, kCountRow] is the warp's own.
template <int kPlanes>
__device__ void finish_pairs_by_cells(const PairwiseInformationArgs& args,
                                      const PlaneCounts& counts, uint32_t* space, int64_t first_x,
                                      int64_t first_y, int64_t* first_fault) {
  constexpr int kRows = PairLanes<kPlanes>::kRows;
#pragma unroll 1
  for (int first = 0; first < kWarpTile; first += kRows) {
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {  // registers have no index known at run time only
      if (16 * i / kRows * kRows == first) {
        store_counts(counts[i], space + 16 * i % kRows * kCountRow);
      }
    }
    __syncwarp();
    finish_pairs_in_lanes<kPlanes>(args, space, first_x + first / kPlanes, first_y, first_fault);
    __syncwarp();  // all have read before the next counts come
  }
}

}  // namespace simmim

#include "launch.cuh"
#include "row_linear.h"
#include "totals.cuh"

namespace simmim {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

// The list of this warp: its row of one chunk.
struct List {
  int64_t index, begin;  // of the weights, row by row
  int columns;           // 0 beyond the last list

  __device__ List(const PackedRows& shape)
      : index(int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes), begin(0), columns(0) {
    if (index >= shape.lists()) return;
    const int64_t first = index / shape.out_features * kChunkColumns;
    const int64_t left = shape.in_features - first;
    begin = index % shape.out_features * shape.in_features + first;
    columns = static_cast<int>(left < kChunkColumns ? left : kChunkColumns);
  }
};

// Calls visit(column, kept, how many of the kept columns before it are in the same bank) in every
// lane for its columns, and returns how many kept ones its bank has in all.
template <typename Visit>
__device__ __forceinline__ int each_column(const PackRowsArgs& args, const List& list,
                                           Visit&& visit) {
  const int lane = threadIdx.x % kWarpLanes;
  const unsigned bank = 0x30003u << 2 * (lane / 2 % kBanks);  // the lanes of the same bank
  int before = 0;
  for (int first = 0; first < list.columns; first += kWarpLanes) {
    const int column = first + lane;
    const bool kept = column < list.columns && args.mask[list.begin + column] != 0;
    const unsigned same = __ballot_sync(~0u, kept) & bank;
    visit(column, kept, before + __popc(same & ((1u << lane) - 1)));
    before += __popc(same);
  }
  return before;
}

__global__ void __launch_bounds__(kThreads) count_units_kernel(PackRowsArgs args, int64_t* units) {
  const List list(args.shape);
  const int own = each_column(args, list, [](int, bool, int) {});
  const int kept = warp_total(own) / (kWarpLanes / kBanks);
  if (threadIdx.x % kWarpLanes == 0 && list.columns > 0) {
    units[list.index] = list_bytes(kept, static_cast<int>(args.item_size)) / kRowUnit;
  }
}

// Where each weight of a list stands: p, in bank p % kBanks, for as many as that leaves places for
// in every bank; the others fill what the emptier banks leave.
struct Places {
  int kept[kBanks], places[kBanks];

  __device__ explicit Places(int own) {
    int total = 0;
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) {
      total += kept[bank] = __shfl_sync(~0u, own, 2 * bank);
    }
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) places[bank] = (total - bank + kBanks - 1) / kBanks;
  }
  // Of the weight that so many of its bank come before.
  __device__ int place(int bank, int before) const {
    int surplus = 0;  // that comes before it
#pragma unroll
    for (int b = 0; b < kBanks; ++b) {
      const int over = kept[b] > places[b] ? kept[b] - places[b] : 0;
      if (b == bank && before < places[b]) return before * kBanks + bank;
      if (b == bank) surplus += before - places[b];
      if (b < bank) surplus += over;
    }
#pragma unroll
    for (int b = 0; b < kBanks; ++b) {
      const int holes = kept[b] < places[b] ? places[b] - kept[b] : 0;
      if (surplus < holes) return (kept[b] + surplus) * kBanks + b;
      surplus -= holes;
    }
    return 0;  // there are as many holes as there is surplus
  }
};

template <typename Item>
__device__ __forceinline__ void put(unsigned char* list, int kept, int place, int column,
                                    Item weight) {
  const int lane = place % kStepWeights, step = place % kBlockWeights / kStepWeights;
  const int first = place / kBlockWeights * kBlockWeights;
  const int steps = block_steps(kept - first);
  unsigned char* block = list + first / kBlockWeights * block_bytes(kBlockSteps, int{sizeof(Item)});
  reinterpret_cast<Item*>(block)[step * kStepWeights + place_of(lane)] = weight;
  auto* words = reinterpret_cast<unsigned*>(block + steps * kStepWeights * sizeof(Item)) + lane;
  const unsigned code = static_cast<unsigned>(slot_of(column));
  const int word = kCodeBits * step / 32, shift = kCodeBits * step % 32;
  // Codes share words, but no bits.
  atomicAdd(words + word * kStepWeights, code << shift);
  if (shift > 32 - kCodeBits) atomicAdd(words + (word + 1) * kStepWeights, code >> (32 - shift));
}

template <typename Item>
__global__ void __launch_bounds__(kThreads)
    pack_rows_kernel(PackRowsArgs args, const int64_t* ends, unsigned char* packed) {
  const List list(args.shape);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    int64_t* sizes = reinterpret_cast<int64_t*>(packed);
    sizes[0] = args.shape.out_features;
    sizes[1] = args.shape.in_features;
  }
  const int own = each_column(args, list, [](int, bool, int) {});
  const int kept = warp_total(own) / (kWarpLanes / kBanks);
  const Places places(own);
  if (list.columns == 0) return;
  const int64_t first =
      args.shape.first_unit() + ends[list.index] - list_bytes(kept, sizeof(Item)) / kRowUnit;
  if (threadIdx.x % kWarpLanes == 0) {
    reinterpret_cast<RowList*>(packed + kRowUnit)[list.index] = {static_cast<uint32_t>(first),
                                                                 kept};
  }
  unsigned char* target = packed + first * kRowUnit;
  const Item* weights = static_cast<const Item*>(args.weight) + list.begin;
  each_column(args, list, [&](int column, bool is_kept, int before) {
    if (!is_kept) return;
    const int place = places.place(slot_of(column) % kBanks, before);
    put(target, kept, place, column, weights[column]);
  });
}

dim3 blocks_of(const PackedRows& shape) {
  return dim3(static_cast<unsigned>(ceil_div(shape.lists(), kWarps)));
}

}  // namespace

int count_row_units_cuda(const PackRowsArgs& args, int64_t* units, void* stream) {
  return launch(count_units_kernel, blocks_of(args.shape), dim3(kThreads), 0, stream, args, units);
}

int pack_rows_cuda(const PackRowsArgs& args, const int64_t* ends, void* packed, void* stream) {
  const auto kernel = args.item_size == 2 ? pack_rows_kernel<uint16_t> : pack_rows_kernel<uint32_t>;
  return launch(kernel, blocks_of(args.shape), dim3(kThreads), 0, stream, args, ends,
                static_cast<unsigned char*>(packed));
}

}  // namespace simmim

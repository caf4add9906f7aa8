#include "joint_planes.cuh"
#include "launch.cuh"
#include "pair_result.cuh"
#include "tensor_core.cuh"

namespace simmim {
namespace {

constexpr int kWarps = kPlanesThreads / kWarpLanes;
constexpr int kStages = 3;  // tiles of planes in shared memory, of which all but one on their way
constexpr int kWarpTile = 64;  // planes of x and of y of which a warp counts all conjunctions
constexpr int kRowFragments = kWarpTile / 16, kColumnFragments = kWarpTile / 8;
constexpr int kRowWarps = kRowTile / kWarpTile;
static_assert(kRowWarps * (kColumnTile / kWarpTile) == kWarps);

constexpr int kStageWords = (kRowTile + kColumnTile) * kChunkWords;
constexpr int kStagePieces = kStageWords / 4;  // of 16 bytes, as they are copied
// Counts of a warp on their way from its registers to the threads that own pairs: whole features.
constexpr int kCountRow = kWarpTile + 8;  // the rows of a fragment's lanes lie in different banks
constexpr int kCountRows = kMaxPlaneBins;
static_assert(kWarps * kCountRows * kCountRow <= kStages * kStageWords);
constexpr int kTableSize = 2048;  // terms of the counts that most cells have
constexpr size_t kSharedBytes =
    kStages * kStageWords * sizeof(uint32_t) + kTableSize * sizeof(int64_t);

// ------------------------------------------------------------------------------------------
// packing

// A warp makes one chunk of one feature's planes: each lane has the code of one sample, a vote
// makes a word, and lane b keeps the words of bin b.
__global__ void __launch_bounds__(kPlanesThreads)
    pack_planes_kernel(const uint8_t* codes, int64_t features, int64_t samples, int32_t bins,
                       int per_feature, Planes out) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t work = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
  const int64_t chunk = work % out.chunks, feature = work / out.chunks;
  if (feature * per_feature >= out.planes) return;
  uint4* to = reinterpret_cast<uint4*>(
      out.words + (chunk * out.planes + feature * per_feature + lane) * kChunkWords);
  for (int group = 0; group < kChunkWords / 4; ++group) {
    uint32_t words[4] = {};
    for (int w = 0; w < 4; ++w) {
      const int64_t sample = chunk * kChunkSamples + (group * 4 + w) * 32 + lane;
      int code = kMaxPlaneBins;  // no bin
      if (feature < features && sample < samples) code = codes[feature * samples + sample];
      for (int bin = 0; bin < bins; ++bin) {
        const uint32_t word = __ballot_sync(~0u, code == bin);
        if (bin == lane) words[w] = word;
      }
    }
    if (lane < per_feature) to[group] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

int pack_planes(const uint8_t* codes, int64_t features, int64_t samples, int32_t bins,
                int per_feature, const Planes& planes, void* stream) {
  const int64_t warps = planes.planes / per_feature * planes.chunks;
  return launch(pack_planes_kernel, dim3(static_cast<unsigned>(ceil_div(warps, kWarps))),
                dim3(kPlanesThreads), 0, stream, codes, features, samples, bins, per_feature,
                planes);
}

// -----------------------------------------------------------------------------------------
// counting

// Starts copying one chunk of the block's planes of x and of y to shared memory, row by row.
__device__ void fetch(const Planes& x, const Planes& y, int64_t row, int64_t column, int64_t chunk,
                      uint32_t* stage) {
  const uint4* rows =
      reinterpret_cast<const uint4*>(x.words) + (chunk * x.planes + row) * (kChunkWords / 4);
  const uint4* columns =
      reinterpret_cast<const uint4*>(y.words) + (chunk * y.planes + column) * (kChunkWords / 4);
  constexpr int kRowPieces = kRowTile * kChunkWords / 4;
  for (int i = threadIdx.x; i < kStagePieces; i += kPlanesThreads) {
    copy_async_16(stage + i * 4, i < kRowPieces ? rows + i : columns + (i - kRowPieces));
  }
}

// The conjunctions of one chunk, added to the warp's counts. The order of a chunk's words does not
// matter, as long as x and y agree: a lane takes four neighbours, which are two steps' fragments.
__device__ __forceinline__ void count_chunk(const uint32_t* stage, int warp_row, int warp_column,
                                            int lane,
                                            int32_t (&counts)[kRowFragments][kColumnFragments][4]) {
  const uint4* rows = reinterpret_cast<const uint4*>(stage);
  const uint4* columns = rows + kRowTile * kChunkWords / 4;
  uint4 upper[kRowFragments], lower[kRowFragments];  // rows g and g + 8 of each fragment
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
    const int row = warp_row + 16 * i + lane / 4;
    upper[i] = rows[row * (kChunkWords / 4) + lane % 4];
    lower[i] = rows[(row + 8) * (kChunkWords / 4) + lane % 4];
  }
#pragma unroll
  for (int j = 0; j < kColumnFragments; ++j) {
    const int column = warp_column + 8 * j + lane / 4;
    const uint4 b = columns[column * (kChunkWords / 4) + lane % 4];
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
      mma_and_popc(counts[i][j], make_uint4(upper[i].x, lower[i].x, upper[i].y, lower[i].y),
                   make_uint2(b.x, b.y));
      mma_and_popc(counts[i][j], make_uint4(upper[i].z, lower[i].z, upper[i].w, lower[i].w),
                   make_uint2(b.z, b.w));
    }
  }
}

// --------------------------------------------------------------------------------------
// information

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
__device__ void finish_pairs(const PairwiseInformationArgs& args, const EntropyTerms& terms,
                             const uint32_t* warp_counts, int64_t first_x, int64_t first_y,
                             int64_t* first_fault) {
  const PairLanes<kPlanes> pair(warp_counts, args.codes);
  const auto total = [](auto sum) { return warp_total(sum, PairLanes<kPlanes>::kWidth); };
  const int64_t x = first_x + pair.down(), y = first_y + pair.across();
  const bool wanted =
      x < args.codes.x_features && y < args.codes.y_features && !(args.symmetric && y < x);
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
          terms, samples < 2 ? 2 : samples, lines,
          [&](auto&& visit) { pair.lines(lines, step, length, stride, visit); }, total);
      if (gaps) (of_x ? result.x : result.y) = nats;
    }
  }
  const double cells = static_cast<double>(pair.x_bins * pair.y_bins);
  result.joint = entropy_of_cells(
      terms, result.samples < 2 ? 2 : result.samples, cells,
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

template <int kPlanes>
__global__ void __launch_bounds__(kPlanesThreads, 1)
    pair_planes_kernel(PairwiseInformationArgs args, Planes x, Planes y, int64_t* first_fault) {
  const int64_t row = int64_t{blockIdx.y} * kRowTile, column = int64_t{blockIdx.x} * kColumnTile;
  if (args.symmetric && column + kColumnTile <= row) return;  // below the diagonal
  uint32_t* stages = shared_memory<uint32_t>();
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int warp_row = warp % kRowWarps * kWarpTile, warp_column = warp / kRowWarps * kWarpTile;

  int32_t counts[kRowFragments][kColumnFragments][4] = {};
  for (int64_t chunk = 0; chunk < kStages - 1; ++chunk) {
    if (chunk < x.chunks) fetch(x, y, row, column, chunk, stages + chunk * kStageWords);
    copy_async_commit();
  }
  for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this chunk has arrived, and all have counted the one before
    const int64_t ahead = chunk + kStages - 1;
    if (ahead < x.chunks) fetch(x, y, row, column, ahead, stages + ahead % kStages * kStageWords);
    copy_async_commit();
    count_chunk(stages + chunk % kStages * kStageWords, warp_row, warp_column, lane, counts);
  }
  copy_async_wait<0>();
  __syncthreads();

  // The stages have served; the space is the counts' now.
  EntropyTerms terms = args.terms;
  int64_t* table = reinterpret_cast<int64_t*>(stages + kStages * kStageWords);
  if (terms.table_size > kTableSize) terms.table_size = kTableSize;
  for (int i = threadIdx.x; i < terms.table_size; i += kPlanesThreads)
    table[i] = args.terms.table[i];
  terms.table = table;
  __syncthreads();
  uint32_t* mine = stages + warp * kCountRows * kCountRow;
  constexpr int kRows = PairLanes<kPlanes>::kRows;
#pragma unroll 1
  for (int first = 0; first < kWarpTile; first += kRows) {
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {  // registers have no index known at run time only
      if (16 * i / kRows * kRows == first)
        store_counts(counts[i], mine + 16 * i % kRows * kCountRow);
    }
    __syncwarp();
    finish_pairs<kPlanes>(args, terms, mine, (row + warp_row + first) / kPlanes,
                          (column + warp_column) / kPlanes, first_fault);
    __syncwarp();  // all have read before the next counts come
  }
}

template <int kPlanes>
int launch_pairs(const PairwiseInformationArgs& args, const Planes& x, const Planes& y,
                 int64_t* first_fault, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.codes.y_features * kPlanes, kColumnTile)),
                  static_cast<unsigned>(ceil_div(args.codes.x_features * kPlanes, kRowTile)));
  return launch(pair_planes_kernel<kPlanes>, grid, dim3(kPlanesThreads), kSharedBytes, stream, args,
                x, y, first_fault);
}

}  // namespace

int pairwise_planes_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                         int64_t* first_fault, void* stream) {
  const CodePair& codes = args.codes;
  const int per_feature = planes_of_pair(codes);
  const int64_t chunks = ceil_div(codes.samples, kChunkSamples);
  const Planes x{scratch, chunks, plane_count(codes.x_features, per_feature)};
  int error =
      pack_planes(codes.x, codes.x_features, codes.samples, codes.x_bins, per_feature, x, stream);
  Planes y = x;
  if (error == cudaSuccess && !args.symmetric) {
    y = {scratch + plane_words(x.planes, codes.samples), chunks,
         plane_count(codes.y_features, per_feature)};
    error =
        pack_planes(codes.y, codes.y_features, codes.samples, codes.y_bins, per_feature, y, stream);
  }
  if (error != cudaSuccess) return error;
  switch (per_feature) {
    case 8:
      return launch_pairs<8>(args, x, y, first_fault, stream);
    case 16:
      return launch_pairs<16>(args, x, y, first_fault, stream);
    default:
      return launch_pairs<32>(args, x, y, first_fault, stream);
  }
}

}  // namespace simmim

#include <algorithm>

#include "joint_planes_pairs.cuh"
#include "launch.cuh"

namespace simmim {
namespace {

constexpr int kPackThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the tiles beyond

constexpr int kSpaceWords = kCountRows * kCountRow;  // of a warp, where the stages were
static_assert(kTileWarps * kSpaceWords <= 2 * kStagePieces * kPieceWords);
constexpr size_t kSharedBytes = 2 * kStagePieces * sizeof(Piece) + Terms::kNear * sizeof(int64_t);
static_assert(kSharedBytes <= kLeastShared);

// A warp packs one chunk of one feature: each lane has the code of one sample, a vote makes a word,
// and lane w keeps word w of every plane.
template <int kPlanes>
__global__ void __launch_bounds__(kPackThreads)
    pack_planes_kernel(const uint8_t* codes, int64_t features, int64_t samples, int32_t bins,
                       CodedPlanes out) {
  constexpr int kGroups = kPlanes / 8;
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t work = int64_t{blockIdx.x} * (kPackThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  const int64_t feature = work % out.features, chunk = work / out.features;
  if (chunk >= out.chunks) return;
  uint32_t planes[kGroups + 3] = {};
  for (int word = 0; word < kChunkWords; ++word) {
    const int64_t sample = chunk * kChunkSamples + word * 32 + lane;
    int code = kPlanes;  // no bin
    if (feature < features && sample < samples) code = codes[feature * samples + sample];
    if (code >= bins) code = kPlanes;
#pragma unroll
    for (int plane = 0; plane < kGroups + 3; ++plane) {
      const bool bit = plane < kGroups ? code / 8 == plane : code >> (plane - kGroups) & 1;
      const uint32_t votes = __ballot_sync(~0u, bit);
      if (word == lane) planes[plane] = votes;
    }
  }
  uint32_t* to = out.words + work * (kGroups + 3) * kChunkWords + lane;
#pragma unroll
  for (int plane = 0; plane < kGroups + 3; ++plane) to[plane * kChunkWords] = planes[plane];
}

template <int kPlanes>
int pack_planes(const uint8_t* codes, int64_t features, int64_t samples, int32_t bins,
                const CodedPlanes& out, void* stream) {
  const int64_t blocks = ceil_div(out.chunks * out.features, kPackThreads / kWarpLanes);
  if (blocks == 0) return cudaSuccess;
  return launch(pack_planes_kernel<kPlanes>, dim3(static_cast<unsigned>(blocks)),
                dim3(kPackThreads), 0, stream, codes, features, samples, bins, out);
}

template <int kPlanes>
__global__ void __launch_bounds__(kTileThreads, 2)
    pair_planes_kernel(PairwiseInformationArgs args, TileOrder order, CodedPlanes x, CodedPlanes y,
                       int64_t* first_fault) {
  constexpr int kFeatures = kTilePlanes / kPlanes;
  Piece* stages = shared_memory<Piece>();
  int64_t* near = reinterpret_cast<int64_t*>(stages + 2 * kStagePieces);
  for (int i = threadIdx.x; i < Terms::kNear && i < args.terms.table_size; i += kTileThreads) {
    near[i] = args.terms.table[i];
  }
  const int warp = threadIdx.x / kWarpLanes;
  const int warp_row = warp % 2 * kWarpTile, warp_column = warp / 2 * kWarpTile;
  uint32_t* space = reinterpret_cast<uint32_t*>(stages) + warp * kSpaceWords;

  for (int64_t index = blockIdx.x; index < order.count(); index += gridDim.x) {
    int64_t row, column;
    if (!order.find(index, &row, &column)) continue;
    FragmentLoader<kPlanes> loader(x, y, row * kFeatures, column * kFeatures);
    PlaneCounts counts = {};
    __syncthreads();  // all have finished the tile before, and the terms are there
    if (x.chunks > 0) {
      loader.load_next();
      loader.store(stages);
    }
    for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
      __syncthreads();  // this chunk is there, and all have counted the one before
      const bool more = chunk + 1 < x.chunks;
      if (more) loader.load_next();  // on its way while this one is counted
      count_chunk(stages + chunk % 2 * kStagePieces, warp_row, warp_column, counts);
      if (more) loader.store(stages + (chunk + 1) % 2 * kStagePieces);
    }
    const int64_t first_x = row * kFeatures + warp_row / kPlanes;
    const int64_t first_y = column * kFeatures + warp_column / kPlanes;
    const bool from_sums = sums_suffice<kPlanes>(args, first_x, first_y);
    if (from_sums) {
      finish_pairs<kPlanes>(args, {SharedTable(near), args.terms.table}, counts, first_x, first_y,
                            first_fault);
    }
    __syncthreads();  // the stages have served
    if (!from_sums) {
      finish_pairs_by_cells<kPlanes>(args, counts, space, first_x, first_y, first_fault);
    }
  }
}

template <int kPlanes>
int pairwise_planes(const PairwiseInformationArgs& args, uint32_t* scratch, int64_t* first_fault,
                    void* stream) {
  const CodePair& codes = args.codes;
  const CodedPlanes x = coded(scratch, codes.x_features, codes.samples, kPlanes);
  int error =
      pack_planes<kPlanes>(codes.x, codes.x_features, codes.samples, codes.x_bins, x, stream);
  CodedPlanes y = x;
  if (error == cudaSuccess && !args.symmetric) {
    y = coded(scratch + words_of(x, kPlanes), codes.y_features, codes.samples, kPlanes);
    error = pack_planes<kPlanes>(codes.y, codes.y_features, codes.samples, codes.y_bins, y, stream);
  }
  if (error != cudaSuccess) return error;
  constexpr int64_t kFeatures = kTilePlanes / kPlanes;
  const TileOrder order{x.features / kFeatures, y.features / kFeatures, args.symmetric};
  const dim3 grid(static_cast<unsigned>(std::min(order.count(), kMaxBlocks)));
  return launch(pair_planes_kernel<kPlanes>, grid, dim3(kTileThreads), kSharedBytes, stream, args,
                order, x, y, first_fault);
}

}  // namespace

bool planes_pay(const CodePair& codes) {
  // Tensor cores multiply bits from Ampere to Hopper; later ones have it done piece by piece.
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    return false;
  }
  return (major == 8 || major == 9) && codes.x_bins <= kMaxPlaneBins &&
         codes.y_bins <= kMaxPlaneBins && codes.samples < (int64_t{1} << 31);
}

int64_t pairwise_planes_words(const PairwiseInformationArgs& args) {
  const CodePair& codes = args.codes;
  const int planes = planes_of_pair(codes);
  const auto words = [&](int64_t features) {
    return words_of(coded(nullptr, features, codes.samples, planes), planes);
  };
  return words(codes.x_features) + (args.symmetric ? 0 : words(codes.y_features));
}

int pairwise_planes_cuda(const PairwiseInformationArgs& args, uint32_t* scratch,
                         int64_t* first_fault, void* stream) {
  switch (planes_of_pair(args.codes)) {
    case 8:
      return pairwise_planes<8>(args, scratch, first_fault, stream);
    case 16:
      return pairwise_planes<16>(args, scratch, first_fault, stream);
    default:
      return pairwise_planes<32>(args, scratch, first_fault, stream);
  }
}

}  // namespace simmim

#include <algorithm>

#include "block_table.cuh"
#include "label.h"

namespace simmim {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the features beyond

// The valid samples of one feature that have a label: by label, by code or by both.
struct LabelSamples {
  const uint8_t* x;
  const int32_t* labels;
  int64_t samples;
  int32_t bins;
  bool by_label, by_code;

  template <typename Add>
  __device__ void each(Add&& add) const {
    for (int64_t i = threadIdx.x; i < samples; i += kTableThreads) {
      if (labels[i] >= 0 && x[i] < bins)
        add(int64_t{by_label ? labels[i] : 0}, by_code ? int32_t{x[i]} : 0);
    }
  }
};

__global__ void __launch_bounds__(kTableThreads, 2)
    label_kernel(LabelTableArgs args, int64_t capacity) {
  const int64_t classes = *args.classes;
  const double alphabet = *args.alphabet;
  for (int64_t feature = blockIdx.x; feature < args.features; feature += gridDim.x) {
    LabelSamples samples{
        args.x + feature * args.samples, args.labels, args.samples, args.bins, true, true};
    const int64_t valid = BlockTable<LabelSamples>(samples, 1, 1, capacity).size();
    double x = 0, y = 0, joint = 0;
#pragma unroll 1
    for (int of = 0; of < 3 && valid >= 2; ++of) {
      samples.by_label = of > 0;
      samples.by_code = of != 1;
      BlockTable<LabelSamples> table(samples, samples.by_label ? classes : 1,
                                     samples.by_code ? args.bins : 1, capacity);
      const double cells =
          (samples.by_label ? alphabet : 1) * (samples.by_code ? double(args.bins) : 1);
      const double nats = table.entropy(args.terms, valid, cells);
      (of == 0 ? x : of == 1 ? y : joint) = nats;
    }
    if (threadIdx.x == 0) {
      args.result[feature] = valid < 2 ? NAN : information(args.information, x, y, joint);
    }
  }
}

constexpr int64_t kSoftBytes = 64 * 1024;  // of sums that a block keeps

int soft_warps(int32_t bins) {
  const int64_t fit = kSoftBytes / (int64_t{bins} * kWarpLanes * int64_t{sizeof(double)});
  return static_cast<int>(std::clamp<int64_t>(fit, 1, 4));
}

int64_t class_tiles(int64_t classes) { return ceil_div(classes, kWarpLanes); }

// A warp adds up the probabilities of 32 classes, one a lane, over the samples of one feature in
// order, bin by bin. Gives the sums of n ln n over its cells and over its classes.
__global__ void soft_sums_kernel(SoftLabelInformationArgs args, double* partial) {
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t feature = int64_t{blockIdx.x} * (blockDim.x / kWarpLanes) + warp;
  const int64_t label = int64_t{blockIdx.y} * kWarpLanes + lane;
  if (feature >= args.features) return;
  double* sums = shared_memory<double>() + warp * args.bins * kWarpLanes + lane;  // own column
  for (int32_t bin = 0; bin < args.bins; ++bin) sums[bin * kWarpLanes] = 0;
  const uint8_t* codes = args.x + feature * args.samples;
  if (label < args.classes) {
    for (int64_t i = 0; i < args.samples; ++i) {
      const double p = args.probabilities[i * args.classes + label];
      if (codes[i] < args.bins) sums[codes[i] * kWarpLanes] += p;
    }
  }
  double cells = 0, in_class = 0;
  for (int32_t bin = 0; bin < args.bins; ++bin) {
    const double sum = sums[bin * kWarpLanes];
    cells += n_log_n(sum);
    in_class += sum;
  }
  cells = warp_total(cells);
  const double classes = warp_total(n_log_n(in_class));
  if (lane != 0) return;
  double* to = partial + 2 * (feature * gridDim.y + blockIdx.y);
  to[0] = cells;
  to[1] = classes;
}

__global__ void __launch_bounds__(kTableThreads)
    soft_information_kernel(SoftLabelInformationArgs args, const int64_t* valid,
                            const double* x_entropy, const double* partial, int64_t tiles) {
  const int64_t feature = int64_t{blockIdx.x} * kTableThreads + threadIdx.x;
  if (feature >= args.features) return;
  double cells = 0, classes = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    cells += partial[2 * (feature * tiles + tile)];
    classes += partial[2 * (feature * tiles + tile) + 1];
  }
  const double n = static_cast<double>(valid[feature]);
  const double y = log(n) - classes / n;
  const double joint = y - (cells - classes) / n;
  args.result[feature] =
      valid[feature] < 2 ? NAN : information(args.information, x_entropy[feature], y, joint);
}

}  // namespace

int label_information_cuda(const LabelTableArgs& args, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const int64_t capacity =
      std::max(table_capacity(args.most_classes, args.bins), int64_t{args.bins});
  const dim3 grid(static_cast<unsigned>(std::min(args.features, kMaxBlocks)));
  return launch(label_kernel, grid, dim3(kTableThreads), table_bytes(capacity), stream, args,
                capacity);
}

int64_t soft_label_scratch(const SoftLabelInformationArgs& args) {
  return 2 * args.features * class_tiles(args.classes);
}

int soft_label_information_cuda(const SoftLabelInformationArgs& args, const int64_t* valid,
                                const double* x_entropy, double* scratch, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const int warps = soft_warps(args.bins);
  const int64_t tiles = class_tiles(args.classes);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.features, warps)),
                  static_cast<unsigned>(tiles));
  const int error = launch(soft_sums_kernel, grid, dim3(kWarpLanes * warps),
                           sizeof(double) * kWarpLanes * warps * args.bins, stream, args, scratch);
  if (error != cudaSuccess) return error;
  const dim3 blocks(static_cast<unsigned>(ceil_div(args.features, kTableThreads)));
  const double* partial = scratch;
  return launch(soft_information_kernel, blocks, dim3(kTableThreads), 0, stream, args, valid,
                x_entropy, partial, tiles);
}

}  // namespace simmim

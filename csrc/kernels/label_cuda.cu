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

}  // namespace

int label_information_cuda(const LabelTableArgs& args, void* stream) {
  if (args.features == 0) return cudaSuccess;
  const int64_t capacity =
      std::max(table_capacity(args.most_classes, args.bins), int64_t{args.bins});
  const dim3 grid(static_cast<unsigned>(std::min(args.features, kMaxBlocks)));
  return launch(label_kernel, grid, dim3(kTableThreads), table_bytes(capacity), stream, args,
                capacity);
}

}  // namespace simmim

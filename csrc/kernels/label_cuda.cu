#include <algorithm>

#include "block_table.cuh"
#include "label.h"

namespace simmim {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // blocks stride over the features beyond

// The valid samples of one feature that have a label: rows by label, columns by code.
struct LabelSamples {
  const uint8_t* x;
  const int32_t* labels;
  int64_t samples;
  int32_t bins;

  template <typename Add>
  __device__ void each(Add&& add) const {
    const auto one = [&](int32_t label, int32_t code) {
      if (label >= 0 && code < bins) add(int64_t{label}, code);
    };
    each_sample(samples, one, labels, x);
  }
};

template <bool kHeld>
__global__ void __launch_bounds__(kTableThreads, kHeld ? 3 : 2)
    label_kernel(LabelTableArgs args, int64_t capacity) {
  const int64_t classes = *args.classes;
  const double alphabet = *args.alphabet;
  for (int64_t feature = blockIdx.x; feature < args.features; feature += gridDim.x) {
    const LabelSamples samples{args.x + feature * args.samples, args.labels, args.samples,
                               args.bins};
    const BlockTable<kHeld, LabelSamples> table(samples, classes, args.bins, capacity);
    const int64_t valid = table.size();
    double x = 0, y = 0, joint = 0;
#pragma unroll 1
    for (int of = 0; of < 3 && valid >= 2; ++of) {
      const Axis axis = of == 0 ? Axis::columns : of == 1 ? Axis::rows : Axis::cells;
      const double cells = (of == 0 ? 1 : alphabet) * (of == 1 ? 1 : args.bins);
      const double nats = table.entropy(axis, args.terms, valid, cells);
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
  const int64_t most_classes = std::max<int64_t>(args.most_classes, 1);
  const int64_t capacity = table_capacity(most_classes, args.bins);
  const auto kernel =
      holds_table(most_classes, args.bins) ? label_kernel<true> : label_kernel<false>;
  const dim3 grid(static_cast<unsigned>(std::min(args.features, kMaxBlocks)));
  return launch(kernel, grid, dim3(kTableThreads), table_bytes(capacity), stream, args, capacity);
}

}  // namespace simmim

// The tile layout: weights are expanded into tiles in the L1 cache and multiplied there as dense
// ones, in bfloat16 with float32 sums. AMX multiplies whole tiles, vdpbf16ps the same tiles row by
// row. To load as sparse and compute as dense is from Xia et al., "Flash-LLM", VLDB 2023.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu_capability.h"
#include "half.h"
#include "sparse_linear.h"
#include "sparse_linear_packed.h"

#if defined(__x86_64__)
#include "tile_products.h"
#endif

namespace simmim {
namespace {

// The weights of kTileOutputs outputs, `depth` tiles, and where they go.
struct Block {
  const uint32_t* masks;
  const uint16_t* values;
  int64_t depth, outputs;
  const float* bias;  // [kTileOutputs]
};

// A task's samples.
template <typename Output>
struct Samples {
  const uint16_t* x;  // tiled
  int64_t count;
  Output* y;  // rows y_stride apart
  int64_t y_stride;
};

// What a thread works in.
struct alignas(64) Scratch {
  static constexpr int64_t kDepth = 8;  // tiles that fit the L1 cache beside as many of x
  uint16_t weights[kDepth * kTileInputs * kTileOutputs];
  float sums[kTileBatch * kTileOutputs];
};

// One sample's outputs by kept weights alone: what other CPUs do, and what is right where x holds
// an infinity or NaN, which a masked weight's 0 would turn into NaN.
template <typename Output>
void plain_outputs(const Block& block, const Samples<Output>& samples, int64_t sample) {
  const uint16_t* x =
      samples.x +
      (sample / kTileSamples * block.depth * kTileSamples + sample % kTileSamples) * kTileInputs;
  const uint16_t* value = block.values;
  float sums[kTileOutputs];
  std::copy_n(block.bias, kTileOutputs, sums);
  for (int64_t row = 0; row < block.depth * kTileInputs; ++row) {
    const int64_t tile = row / kTileInputs, half = row / (kTileInputs / 2) % 2;
    const uint16_t* pair = x + tile * kTileSamples * kTileInputs + row % (kTileInputs / 2) * 2;
    float* outputs = sums + half * kTileOutputs / 2;
    for (uint32_t kept = block.masks[row]; kept != 0; kept &= kept - 1) {
      const int item = __builtin_ctz(kept);
      outputs[item / 2] += BFloat16{*value++} * BFloat16{pair[item % 2]};
    }
  }
  Output* y = samples.y + sample * samples.y_stride;
  for (int64_t i = 0; i < block.outputs; ++i) {
    if constexpr (std::is_same_v<Output, float>) {
      y[i] = sums[i];
    } else {
      y[i] = to_bfloat16(sums[i]);
    }
  }
}

#if defined(__x86_64__)
// From sums to outputs, for the samples [begin, end).
template <typename Output>
SIMMIM_TARGET_AVX512_BF16 void finish(const Block& block, const Samples<Output>& samples,
                                      int64_t begin, int64_t end, const float* sums) {
  for (int64_t sample = begin; sample < std::min(end, samples.count); ++sample) {
    Output* y = samples.y + sample * samples.y_stride;
    if (!add_bias(sums + sample * kTileOutputs, block.bias, block.outputs, y)) {
      plain_outputs(block, samples, sample);
    }
  }
}

// Up to so many samples use the weights as they are expanded.
constexpr int64_t kFew = 4;
template <typename Output>
void multiply_few(const Block& block, const Samples<Output>& samples, float* sums) {
  const auto multiply = [&](auto count) {
    multiply_expanding<count>(block.masks, block.values, samples.x, block.depth, sums);
  };
  switch (samples.count) {
    case 1:
      multiply(std::integral_constant<int, 1>());
      break;
    case 2:
      multiply(std::integral_constant<int, 2>());
      break;
    case 3:
      multiply(std::integral_constant<int, 3>());
      break;
    default:
      multiply(std::integral_constant<int, kFew>());
  }
  finish(block, samples, 0, samples.count, sums);
}

template <typename Output>
void multiply_many(const Block& block, const Samples<Output>& samples, bool has_amx,
                   Scratch& scratch) {
  const uint32_t* masks = block.masks;
  const uint16_t* values = block.values;
  const int64_t x_stride = block.depth * kInputItems;
  if (has_amx) configure_tiles();
  for (int64_t begin = 0; begin < block.depth; begin += Scratch::kDepth) {
    const bool begins = begin == 0, ends = begin + Scratch::kDepth >= block.depth;
    const int64_t tiles = std::min(Scratch::kDepth, block.depth - begin);
    values = expand_rows(masks, values, tiles * kTileInputs, scratch.weights);
    masks += tiles * kTileInputs;
    asm volatile("" : : : "memory");  // the compiler does not see what AMX reads and writes
    for (int64_t sample = 0, next; sample < samples.count; sample = next) {
      const uint16_t* x = samples.x + sample / kTileSamples * x_stride + begin * kInputItems;
      float* sums = scratch.sums + sample * kTileOutputs;
      if (!has_amx) {
        const int64_t row = sample % kTileSamples;
        multiply_rows(x + row * kTileInputs, scratch.weights, tiles, begins, sums);
        next = sample + kRowSamples;
      } else if (samples.count - sample > kTileSamples) {
        multiply_tiles<true>(x, x_stride, scratch.weights, tiles, begins, sums);
        next = sample + 2 * kTileSamples;
      } else {
        multiply_tiles<false>(x, x_stride, scratch.weights, tiles, begins, sums);
        next = sample + kTileSamples;
      }
      asm volatile("" : : : "memory");
      if (ends) finish(block, samples, sample, next, scratch.sums);
    }
  }
  if (has_amx) release_tiles();
}
#endif

template <typename Output>
void multiply(const Block& block, const Samples<Output>& samples,
              [[maybe_unused]] Scratch& scratch) {
#if defined(__x86_64__)
  const CpuCapability capability = cpu_capability();
  if (capability >= CpuCapability::avx512_bf16 && block.depth > 0) {
    if (samples.count <= kFew) return multiply_few(block, samples, scratch.sums);
    return multiply_many(block, samples, capability >= CpuCapability::amx, scratch);
  }
#endif
  for (int64_t sample = 0; sample < samples.count; ++sample) {
    plain_outputs(block, samples, sample);
  }
}

template <typename Output>
void run(const TileLinearArgs& args, int64_t begin, int64_t end) {
  const Packed packed(args.packed);
  const TileWeight weight = packed.tile();
  const int64_t out_features = packed.header().out_features;
  const int64_t depth = divide_up(packed.header().in_features, kTileInputs);
  const int64_t blocks = divide_up(out_features, kTileOutputs);
  const std::unique_ptr<Scratch> scratch(new Scratch);  // not made 0
  for (int64_t task = begin; task < end; ++task) {
    const int64_t number = task % blocks, first_sample = task / blocks * kTileBatch;
    const int64_t first_output = number * kTileOutputs;
    const int64_t outputs = std::min(kTileOutputs, out_features - first_output);
    float bias[kTileOutputs] = {};
    if (args.bias != nullptr) std::copy_n(args.bias + first_output, outputs, bias);
    const Block block{weight.masks + number * depth * kTileInputs,
                      weight.values + weight.first[number], depth, outputs, bias};
    const Samples<Output> samples{
        args.x + first_sample * depth * kTileInputs,
        std::min(kTileBatch, args.batch - first_sample),
        static_cast<Output*>(args.y) + first_sample * out_features + first_output, out_features};
    multiply(block, samples, *scratch);
  }
}

}  // namespace

void tile_linear_cpu(const TileLinearArgs& args, int64_t begin, int64_t end) {
  args.is_bfloat16 ? run<BFloat16>(args, begin, end) : run<float>(args, begin, end);
}

}  // namespace simmim

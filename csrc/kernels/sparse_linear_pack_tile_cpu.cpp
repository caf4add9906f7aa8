#include <algorithm>

#include "cpu_capability.h"
#include "half.h"
#include "sparse_linear_packed.h"
#include "sparse_linear_packer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simmim {
namespace {

// x [count] -> items [kTileInputs], 0 beyond.
void pack_row(const float* x, int64_t count, uint16_t* items) {
  for (int64_t i = 0; i < kTileInputs; ++i) items[i] = i < count ? to_bfloat16(x[i]).bits : 0;
}

#if defined(__x86_64__)
SIMMIM_TARGET_AVX512_BF16 void pack_row_avx512(const float* x, int64_t count, uint16_t* items) {
  const auto load = [&](int64_t begin) SIMMIM_TARGET_AVX512_BF16 {
    const int64_t lanes = std::clamp<int64_t>(count - begin, 0, 16);
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), x + begin);
  };
  const __m512bh row = _mm512_cvtne2ps_pbh(load(16), load(0));
  _mm512_storeu_si512(items, reinterpret_cast<__m512i>(row));
}
#endif

}  // namespace

void pack_tile_cpu(const PackArgs& args, const Allocate& allocate) {
  const int64_t blocks = divide_up(args.out_features, kTileOutputs);
  const int64_t depth = divide_up(args.in_features, kTileInputs);
  std::vector<int64_t> first;
  std::vector<uint32_t> masks;
  std::vector<uint16_t> values;
  for (int64_t block = 0; block < blocks; ++block) {
    first.push_back(static_cast<int64_t>(values.size()));
    for (int64_t row = 0; row < depth * kTileInputs; ++row) {
      const int64_t half = row / (kTileInputs / 2) % 2;
      uint32_t mask = 0;
      for (int64_t item = 0; item < 32; ++item) {
        const int64_t output = block * kTileOutputs + half * kTileOutputs / 2 + item / 2;
        const int64_t input =
            row / kTileInputs * kTileInputs + row % (kTileInputs / 2) * 2 + item % 2;
        if (output >= args.out_features || input >= args.in_features) continue;
        const int64_t i = output * args.in_features + input;
        if (!args.mask[i]) continue;
        mask |= uint32_t{1} << item;
        values.push_back(to_bfloat16(args.weight[i]).bits);
      }
      masks.push_back(mask);
    }
  }
  values.resize(values.size() + 32);  // whole vectors are read
  write_packed(args, allocate, first, masks, values);
}

void pack_tiles_cpu(const PackTilesArgs& args, int64_t begin, int64_t end) {
  const int64_t depth = divide_up(args.in_features, kTileInputs);
#if defined(__x86_64__)
  const bool converts = cpu_capability() >= CpuCapability::avx512_bf16;
  const auto pack = converts ? pack_row_avx512 : pack_row;
#else
  const auto pack = pack_row;
#endif
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t samples = std::min(kTileSamples, args.batch - tile * kTileSamples);
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t row = (tile * kTileSamples + s) * args.in_features;
      for (int64_t d = 0; d < depth; ++d) {
        uint16_t* items = args.tiles + ((tile * depth + d) * kTileSamples + s) * kTileInputs;
        const int64_t column = d * kTileInputs;
        const int64_t count = std::min(kTileInputs, args.in_features - column);
        if (args.is_bfloat16) {
          const auto* x = static_cast<const uint16_t*>(args.x) + row + column;
          std::fill(std::copy_n(x, count, items), items + kTileInputs, uint16_t{0});
        } else {
          pack(static_cast<const float*>(args.x) + row + column, count, items);
        }
      }
    }
  }
}

}  // namespace simmim

// The tile layout's products with AMX, emulated, against their sums.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>

#include "../../csrc/kernels/cpu_capability.h"
#include "../../csrc/kernels/sparse_linear.h"
#include "../simt/check.h"
#include "../simt/matrices.h"

namespace {

using simmim::BFloat16;

struct Free {
  void operator()(void* bytes) const { std::free(bytes); }
};
using Bytes = std::unique_ptr<void, Free>;

Bytes pack(const std::vector<float>& weight, const std::vector<uint8_t>& mask, int64_t out,
           int64_t in) {
  Bytes packed;
  const simmim::PackArgs args{weight.data(),        mask.data(), out,  in,
                              simmim::Layout::tile, false,       false};
  simmim::pack_sparse_cpu(args, [&](int64_t bytes) {
    packed.reset(std::aligned_alloc(simmim::PackedHeader::kAlignment, bytes));
    return packed.get();
  });
  return packed;
}

template <typename Stored>
void check(int64_t out, int64_t in, double density, const std::vector<int64_t>& batches,
           bool special = false) {
  std::mt19937 random(static_cast<unsigned>(out * 1000 + in));
  const auto weight = simt::whole_numbers<float>(out * in, random);
  const auto mask = simt::mask_of(out * in, density, random);
  const auto bias = simt::whole_numbers<float>(out, random);
  const Bytes packed = pack(weight, mask, out, in);
  const std::vector<Stored> stored_weight = [&] {
    std::vector<Stored> values(weight.size());
    std::transform(weight.begin(), weight.end(), values.begin(), simt::stored<Stored>);
    return values;
  }();

  for (const int64_t batch : batches) {
    auto x = simt::whole_numbers<Stored>(batch * in, random);
    if (special) {
      x[in - 1] = simt::stored<Stored>(NAN);
      x[(batch - 1) * in] = simt::stored<Stored>(std::numeric_limits<float>::infinity());
    }
    const int64_t batch_tiles = simmim::divide_up(batch, simmim::kTileSamples);
    const int64_t depth = simmim::divide_up(in, simmim::kTileInputs);
    const int64_t items = batch_tiles * depth * simmim::kTileSamples * simmim::kTileInputs;
    const Bytes tiles(std::aligned_alloc(64, std::max<int64_t>(items * 2, 64)));
    std::fill_n(static_cast<uint16_t*>(tiles.get()), items, uint16_t{0x7fc0});  // NaN
    constexpr bool is_bfloat16 = std::is_same_v<Stored, BFloat16>;
    const simmim::PackTilesArgs pack_args{x.data(), is_bfloat16,
                                          static_cast<uint16_t*>(tiles.get()), batch, in};
    simmim::pack_tiles_cpu(pack_args, 0, batch_tiles);

    for (const bool has_bias : {false, true}) {
      std::vector<Stored> y(batch * out, simt::stored<Stored>(-9));
      const simmim::TileLinearArgs args{
          packed.get(), pack_args.tiles, has_bias ? bias.data() : nullptr,
          y.data(),     is_bfloat16,     batch};
      const int64_t before = amx::products;
      simmim::tile_linear_cpu(args, 0,
                              simmim::divide_up(batch, simmim::kTileBatch) *
                                  simmim::divide_up(out, simmim::kTileOutputs));
      const bool is_emulated = amx::products > before;
      int wrong = 0;
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t o = 0; o < out; ++o) {
          double sum = simt::kept_sum(&x[b * in], &stored_weight[o * in], &mask[o * in], 1, in);
          if (has_bias) sum += double(bias[o]);
          wrong += !simt::is_rounded(y[b * out + o], sum);
        }
      }
      simt::check(wrong == 0 && is_emulated, "tile_linear: %s out=%ld in=%ld batch=%ld: %d",
                  simt::type_name<Stored>(), out, in, batch, wrong);
    }
  }
}

template <typename Stored>
void check_all() {
  check<Stored>(1, 1, 1, {5, 16});
  check<Stored>(32, 32, 1, {16, 17, 32});
  check<Stored>(35, 70, 0.4, {5, 31, 33, 48, 49});
  check<Stored>(40, 130, 0, {20});
  check<Stored>(70, 300, 0.1, {20, 511, 512, 513 + 16});  // more tiles than the scratch holds
  check<Stored>(33, 257, 0.5, {5, 40}, true);
}

}  // namespace

int main() {
  simmim::set_cpu_capability("amx");
  check_all<float>();
  check_all<BFloat16>();
  return simt::finish("tile_linear");
}

// Weights packed in tiles and multiplied, emulated, against their sums.
#include "../../csrc/kernels/tile_linear.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "check.h"
#include "matrices.h"

namespace {

using simmim::kPackedColumns;
using simmim::kPackedUnit;
using simmim::PackedTiles;
using simmim::TileForm;

// What vectors allocate, which are exactly as long as they say, is aligned as x must be.
static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= kPackedUnit);

template <typename Stored>
void check(TileForm form, int64_t out, int64_t in, double density,
           const std::vector<int64_t>& batches, bool special = false) {
  std::mt19937 random(static_cast<unsigned>(out * 1000 + in));
  auto weight = simt::whole_numbers<Stored>(out * in, random);
  const auto mask = simt::mask_of(out * in, density, random);
  const auto bias = simt::whole_numbers<Stored>(out, random);
  if (special) weight[in / 3] = simt::stored<Stored>(NAN);  // kept or not

  const PackedTiles shape{out, in};
  const simmim::PackTilesArgs pack{weight.data(), mask.data(), shape, sizeof(Stored), form};
  std::vector<int64_t> ends(shape.tiles(), -9);
  int error = simmim::count_tile_units_cuda(pack, ends.data(), nullptr);
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  const int64_t units = shape.first_unit() + (ends.empty() ? 0 : ends.back());
  std::vector<unsigned char> packed(units * kPackedUnit, 0xa5);
  error |= simmim::pack_tiles_cuda(pack, ends.data(), packed.data(), nullptr);
  simt::check(error == 0, "pack_tiles: out=%ld in=%ld", out, in);

  for (const int64_t batch : batches) {
    const int64_t columns = shape.column_tiles() * kPackedColumns;
    auto rows = simt::whole_numbers<Stored>(batch * in, random);
    if (special && batch > 0) {
      rows[in - 1] = simt::stored<Stored>(NAN);
      rows[(batch - 1) * in] = simt::stored<Stored>(std::numeric_limits<float>::infinity());
    }
    std::vector<Stored> x(batch * columns);
    for (int64_t b = 0; b < batch; ++b) std::copy_n(&rows[b * in], in, x.data() + b * columns);
    for (const bool has_bias : {false, true}) {
      std::vector<Stored> y(batch * out, simt::stored<Stored>(-9));
      const simmim::TileLinearArgs<Stored> args{
          packed.data(), x.data(), has_bias ? bias.data() : nullptr, y.data(), batch, shape, form};
      std::vector<float> scratch(simmim::tile_linear_scratch(args), -9);
      error = simmim::tile_linear_cuda(args, scratch.data(), nullptr);
      int wrong = 0;
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t o = 0; o < out; ++o) {
          double sum = simt::kept_sum(&rows[b * in], &weight[o * in], &mask[o * in], 1, in);
          if (has_bias) sum += double(bias[o]);
          wrong += !simt::is_rounded(y[b * out + o], sum);
        }
      }
      simt::check(error == 0 && wrong == 0, "tile_linear: %s out=%ld in=%ld batch=%ld: %d",
                  simt::type_name<Stored>(), out, in, batch, wrong);
    }
  }
  // Packed for other sizes than it is taken for: NaN, and nothing read that is not there.
  std::vector<Stored> y(2 * (out + 20), Stored{});
  const std::vector<Stored> x(2 * kPackedColumns * 40);
  const simmim::TileLinearArgs<Stored> args{
      packed.data(), x.data(), nullptr, y.data(), 2, {out + 20, kPackedColumns * 40}, form};
  std::vector<float> scratch(simmim::tile_linear_scratch(args));
  error = simmim::tile_linear_cuda(args, scratch.data(), nullptr);
  int numbers = 0;
  for (const Stored value : y) numbers += !std::isnan(double(value));
  simt::check(error == 0 && numbers == 0, "tile_linear of other sizes: %d", numbers);
}

template <typename Stored>
void check_all(TileForm form, const std::vector<int64_t>& batches) {
  check<Stored>(form, 1, 1, 1, batches);
  check<Stored>(form, 21, 70, 0.4, batches);
  check<Stored>(form, 16, 64, 1, batches);  // a list that is longer than a stage
  check<Stored>(form, 40, 130, 0, {1, 20});
  check<Stored>(form, 3, 0, 1, {2});
  check<Stored>(form, 0, 3, 1, {2});
  check<Stored>(form, 35, 1100, 0.1,
                {3, 20});                    // more tiles than stages, shared by warps and blocks
  check<Stored>(form, 1, 16500, 0.02, {1});  // more than are looked up at a time
  check<Stored>(form, 21, 300, 0.5, {1, 9, 40}, true);
}

}  // namespace

int main() {
  check_all<float>(TileForm::bits, {0, 1, 11});
  for (const TileForm form : {TileForm::bits, TileForm::list}) {
    check_all<simmim::Half>(form, {0, 17});
    check_all<simmim::BFloat16>(form, {8, 70});
  }
  return simt::finish("tile_linear");
}

// Weights packed as rows and multiplied, emulated, against their sums.
#include "../../csrc/kernels/row_linear.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "check.h"
#include "matrices.h"

namespace {

using simmim::PackedRows;

constexpr int64_t kWholeColumns = 16;

// What vectors allocate, which are exactly as long as they say, is aligned as x must be.
static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= simmim::kRowUnit);

template <typename Stored>
std::vector<unsigned char> packed(const PackedRows& shape, const std::vector<Stored>& weight,
                                  const std::vector<uint8_t>& mask) {
  const simmim::PackRowsArgs args{weight.data(), mask.data(), shape, sizeof(Stored)};
  std::vector<int64_t> ends(shape.lists(), -9);
  int error = simmim::count_row_units_cuda(args, ends.data(), nullptr);
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  std::vector<unsigned char> result((shape.first_unit() + ends.back()) * simmim::kRowUnit);
  error |= simmim::pack_rows_cuda(args, ends.data(), result.data(), nullptr);
  simt::check(error == 0, "pack_rows: %ld x %ld", shape.out_features, shape.in_features);
  return result;
}

template <typename Stored>
std::vector<Stored> product(const std::vector<unsigned char>& packed, const PackedRows& shape,
                            const std::vector<Stored>& x, const std::vector<Stored>* bias,
                            int64_t batch) {
  std::vector<Stored> y(batch * shape.out_features, simt::stored<Stored>(-9));
  const simmim::RowLinearArgs<Stored> args{
      packed.data(), x.data(), bias == nullptr ? nullptr : bias->data(),
      y.data(),      batch,    static_cast<int64_t>(x.size()) / std::max<int64_t>(batch, 1),
      shape};
  std::vector<float> scratch(simmim::row_linear_scratch(args), -9);
  const int error = simmim::row_linear_cuda(args, scratch.data(), nullptr);
  simt::check(error == 0, "row_linear: a launch failed");
  return y;
}

enum Kind { plain, special, uneven };

template <typename Stored>
void check(int64_t out, int64_t in, double density, const std::vector<int64_t>& batches,
           Kind kind = plain) {
  std::mt19937 random(static_cast<unsigned>(out * 1000 + in));
  auto weight = simt::whole_numbers<Stored>(out * in, random);
  auto mask = simt::mask_of(out * in, density, random);
  const auto bias = simt::whole_numbers<Stored>(out, random);
  if (kind == special) weight[in / 3] = simt::stored<Stored>(NAN);  // kept or not
  if (kind == uneven) {
    // A row of nothing, one of everything, and one whose weights share a bank of shared memory.
    for (int64_t i = 0; i < in; ++i) mask[i] = 0, mask[in + i] = 1, mask[2 * in + i] = i % 16 < 2;
  }
  const PackedRows shape{out, in};
  const auto rows = packed<Stored>(shape, weight, mask);
  for (const int64_t batch : batches) {
    auto given = simt::whole_numbers<Stored>(batch * in, random);
    if (kind == special && batch > 0) {
      given[in - 1] = simt::stored<Stored>(NAN);
      given[(batch - 1) * in] = simt::stored<Stored>(std::numeric_limits<float>::infinity());
    }
    const int64_t columns = (in + kWholeColumns - 1) / kWholeColumns * kWholeColumns;
    std::vector<Stored> x(batch * columns, simt::stored<Stored>(NAN));
    for (int64_t b = 0; b < batch; ++b) std::copy_n(&given[b * in], in, &x[b * columns]);
    for (const bool has_bias : {false, true}) {
      const auto y = product(rows, shape, x, has_bias ? &bias : nullptr, batch);
      int wrong = 0;
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t o = 0; o < out; ++o) {
          double sum = simt::kept_sum(&given[b * in], &weight[o * in], &mask[o * in], 1, in);
          if (has_bias) sum += double(bias[o]);
          wrong += !simt::is_rounded(y[b * out + o], sum);
        }
      }
      simt::check(wrong == 0, "row_linear: %s out=%ld in=%ld density=%g batch=%ld: %d",
                  simt::type_name<Stored>(), out, in, density, batch, wrong);
    }
  }
  // Packed for other sizes than it is taken for: NaN, and nothing read that is not there.
  const std::vector<Stored> x(2 * 6400);
  int numbers = 0;
  for (const Stored value : product<Stored>(rows, {out + 20, 6400}, x, nullptr, 2)) {
    numbers += !std::isnan(double(value));
  }
  simt::check(numbers == 0, "row_linear of other sizes: %d", numbers);
}

template <typename Stored>
void check_all(const std::vector<int64_t>& batches) {
  check<Stored>(1, 1, 1, batches);
  check<Stored>(1, 300, 0.5, batches);  // one row
  check<Stored>(7, 1, 0.7, batches);    // one column
  check<Stored>(11, 70, 0.4, batches);
  check<Stored>(8, 64, 1, batches);
  check<Stored>(4, 130, 0, {1, 20});
  check<Stored>(5, 700, 0.3, batches, uneven);
  check<Stored>(6, 300, 0.5, {9, 40}, special);
}

// How many weights of a row are not in the bank of shared memory that their place is for, which
// slows the product down and has no other effect.
int misplaced(int64_t in, double density) {
  std::mt19937 random(static_cast<unsigned>(in));
  const std::vector<simmim::Half> weight(in);
  const PackedRows shape{1, in};
  const auto rows = packed(shape, weight, simt::mask_of(in, density, random));
  const int kept = reinterpret_cast<const simmim::RowList*>(rows.data() + simmim::kRowUnit)->kept;
  int wrong = 0;
  for (int place = 0; place < kept; ++place) {
    const int block = place / simmim::kBlockWeights, step = place / 32 % simmim::kBlockSteps;
    const int steps = simmim::block_steps(kept - block * simmim::kBlockWeights);
    const auto* values = rows.data() + shape.first_unit() * simmim::kRowUnit +
                         block * simmim::block_bytes(simmim::kBlockSteps, 2);
    const auto* words = reinterpret_cast<const uint32_t*>(values + steps * 32 * 2) + place % 32;
    const int bit = simmim::kCodeBits * step;
    const int code = static_cast<int>(words[bit / 32 * 32] >> bit % 32);  // its lowest bits
    wrong += (code ^ place) % simmim::kBanks != 0;
  }
  return wrong;
}

// More rows than the warps of all blocks. They are of two kinds, whose lists they share.
void check_many_rows() {
  using Stored = simmim::BFloat16;
  constexpr int64_t kRows = 2150;
  const std::vector<Stored> weight = {{0x3f80}, {0}, {0x4000}, {0}};  // 1 and 2
  const PackedRows two{2, 2}, many{kRows, 2};
  const auto few = packed<Stored>(two, weight, {1, 0, 1, 0});
  std::vector<unsigned char> rows(few.size() +
                                  (many.first_unit() - two.first_unit()) * simmim::kRowUnit);
  std::copy(few.begin() + two.first_unit() * simmim::kRowUnit, few.end(),
            rows.begin() + many.first_unit() * simmim::kRowUnit);
  std::copy_n(&kRows, 1, reinterpret_cast<int64_t*>(rows.data()));
  std::copy_n(&many.in_features, 1, reinterpret_cast<int64_t*>(rows.data()) + 1);
  auto* lists = reinterpret_cast<simmim::RowList*>(rows.data() + simmim::kRowUnit);
  for (int64_t row = 0; row < kRows; ++row) {
    lists[row] = reinterpret_cast<const simmim::RowList*>(few.data() + simmim::kRowUnit)[row % 2];
    lists[row].first_unit += static_cast<uint32_t>(many.first_unit() - two.first_unit());
  }
  std::vector<Stored> x(kWholeColumns);
  x[0] = {0x4040};  // 3
  int wrong = 0;
  const auto y = product<Stored>(rows, many, x, nullptr, 1);
  for (int64_t row = 0; row < kRows; ++row) wrong += float(y[row]) != (row % 2 == 0 ? 3 : 6);
  simt::check(wrong == 0, "row_linear of many rows: %d", wrong);
}

}  // namespace

int main() {
  check_all<float>({0, 7});
  check_all<simmim::Half>({8, 13});
  check_all<simmim::BFloat16>({1, 16});
  check<simmim::BFloat16>(3, 4096, 0.2, {5, 16});  // as many columns as a chunk holds
  check<float>(5, 8200, 0.1, {2});                 // three chunks
  check_many_rows();
  simt::shared_capacity = 99 * 1024;  // too little for two planes
  check<simmim::BFloat16>(3, 4096, 0.2, {16});
  simt::shared_capacity = simt::kSharedCapacity;
  const int all = misplaced(1008, 1), some = misplaced(4096, 0.2), bound = 80;  // of about 820
  simt::check(all == 0 && 0 < some && some < bound, "places: %d and %d", all, some);
  return simt::finish("row_linear");
}

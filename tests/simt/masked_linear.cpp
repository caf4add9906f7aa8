// The product with a masked weight and its gradient in the weight, emulated, against their sums.
#include "../../csrc/kernels/masked_linear.h"

#include <limits>

#include "check.h"
#include "matrices.h"

namespace {

// `offset` values before each operand: vectors must not be taken where rows are not aligned.
template <typename Stored>
void check(int64_t batch, int64_t out, int64_t in, double density, int offset, bool special) {
  std::mt19937 random(static_cast<unsigned>(batch * 100 + in));
  auto x = simt::whole_numbers<Stored>(batch * in + offset, random);
  auto weight = simt::whole_numbers<Stored>(out * in + offset, random);
  const auto bias = simt::whole_numbers<Stored>(out, random);
  const auto grad = simt::whole_numbers<Stored>(batch * out, random);
  const auto mask = simt::mask_of(out * in + offset, density, random);
  if (special && in > 0) {
    x[offset + in / 2] = simt::stored<Stored>(std::numeric_limits<float>::infinity());
    weight[offset + in / 3] = simt::stored<Stored>(NAN);
  }
  for (const bool has_bias : {false, true}) {
    std::vector<Stored> y(batch * out, simt::stored<Stored>(-9));
    const int error = simmim::masked_linear_cuda<Stored>(
        {x.data() + offset, weight.data() + offset, mask.data() + offset,
         has_bias ? bias.data() : nullptr, y.data(), batch, out, in},
        nullptr);
    int wrong = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = simt::kept_sum(&x[offset + b * in], &weight[offset + o * in],
                                    &mask[offset + o * in], 1, in);
        if (has_bias) sum += double(bias[o]);
        wrong += !simt::is_rounded(y[b * out + o], sum);
      }
    }
    simt::check(error == 0 && wrong == 0,
                "masked_linear: %s batch=%ld out=%ld in=%ld offset=%d: %d",
                simt::type_name<Stored>(), batch, out, in, offset, wrong);
  }
  if (special) return;
  std::vector<Stored> product(out * in + offset, simt::stored<Stored>(-9));
  const int error =
      simmim::masked_outer_cuda<Stored>({grad.data(), x.data() + offset, mask.data() + offset,
                                         product.data() + offset, batch, out, in},
                                        nullptr);
  int wrong = 0;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) {
        sum += double(grad[b * out + o]) * double(x[offset + b * in + i]);
      }
      if (!mask[offset + o * in + i]) sum = 0;
      wrong += !simt::is_rounded(product[offset + o * in + i], sum);
    }
  }
  simt::check(error == 0 && wrong == 0, "masked_outer: %s batch=%ld out=%ld in=%ld offset=%d: %d",
              simt::type_name<Stored>(), batch, out, in, offset, wrong);
}

template <typename Stored>
void check_all() {
  for (const int64_t batch : {0, 1, 3, 16}) {
    check<Stored>(batch, 1, 1, 1, 0, false);
    check<Stored>(batch, 5, 37, 0.5, 0, false);
    check<Stored>(batch, 35, 264, 0.3, 0, false);  // whole vectors, and rows of no whole warp
    check<Stored>(batch, 4, 264, 0.3, 1, false);   // the same, not aligned
  }
  check<Stored>(0, 0, 3, 1, 0, false);
  check<Stored>(2, 3, 0, 1, 0, false);
  check<Stored>(2, 9, 520, 0.4, 0, true);
  check<Stored>(2, 9, 41, 0.4, 0, true);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<simmim::Half>();
  check_all<simmim::BFloat16>();
  return simt::finish("masked_linear");
}

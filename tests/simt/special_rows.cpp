// Rows whose x has infinities or NaNs, emulated: computed again from the kept weights alone.
#include "../../csrc/kernels/special_rows.h"

#include <limits>

#include "check.h"
#include "matrices.h"

namespace {

template <typename Stored>
void check(int64_t batch, int64_t outputs, int64_t inputs, bool transposed, bool bits,
           bool has_bias) {
  std::mt19937 random(static_cast<unsigned>(batch + outputs));
  auto x = simt::whole_numbers<Stored>(batch * inputs, random);
  const auto bias = simt::whole_numbers<Stored>(outputs, random);
  auto weight = simt::whole_numbers<Stored>(outputs * inputs, random);
  const auto mask = simt::mask_of(outputs * inputs, 0.4, random);
  for (int64_t i = 0; i < outputs * inputs; ++i) {
    if (!mask[i]) weight[i] = Stored{};
  }
  std::vector<uint8_t> bitmap(simmim::bitmap_bytes(outputs * inputs));
  for (int64_t i = 0; i < outputs * inputs; ++i) bitmap[i / 8] |= mask[i] << (i % 8);
  const auto special = [&](int64_t b) { return b % 3 == 1 && inputs > 0; };
  for (int64_t b = 0; b < batch; ++b) {
    if (special(b)) {
      x[b * inputs + b % inputs] =
          simt::stored<Stored>(b % 2 ? NAN : -std::numeric_limits<float>::infinity());
    }
  }
  const int64_t output_stride = transposed ? 1 : inputs, input_stride = transposed ? outputs : 1;
  std::vector<Stored> y(batch * outputs);
  std::vector<double> wanted(batch * outputs);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t o = 0; o < outputs; ++o) {
      const double sum = simt::kept_sum(&x[b * inputs], &weight[o * output_stride],
                                        &mask[o * output_stride], input_stride, inputs) +
                         (has_bias ? double(bias[o]) : 0);
      // Rows without anything special stay as they are, whatever they hold: 7 is a mark. One has
      // overflowed by itself.
      const bool overflow = b % 3 == 2;
      wanted[b * outputs + o] = special(b) ? sum : overflow ? INFINITY : 7;
      y[b * outputs + o] = simt::stored<Stored>(special(b) ? NAN
                                                : overflow ? std::numeric_limits<float>::infinity()
                                                           : 7);
    }
  }
  const int error = simmim::special_rows_cuda<Stored>(
      {x.data(), weight.data(), bits ? nullptr : mask.data(), bits ? bitmap.data() : nullptr,
       has_bias ? bias.data() : nullptr, y.data(), batch, outputs, inputs, output_stride,
       input_stride},
      nullptr);
  int wrong = 0;
  for (int64_t i = 0; i < batch * outputs; ++i) wrong += !simt::is_rounded(y[i], wanted[i]);
  simt::check(error == 0 && wrong == 0, "special_rows: %s batch=%ld outputs=%ld inputs=%ld: %d",
              simt::type_name<Stored>(), batch, outputs, inputs, wrong);
}

template <typename Stored>
void check_all() {
  for (const bool transposed : {false, true}) {
    for (const bool bits : {false, true}) {
      check<Stored>(7, 13, 37, transposed, bits, true);
      check<Stored>(3, 1, 300, transposed, bits, false);
    }
  }
  check<Stored>(0, 4, 3, false, false, false);
  check<Stored>(2, 0, 3, false, false, false);
  check<Stored>(2, 4, 0, false, false, true);
}

}  // namespace

int main() {
  check_all<double>();
  check_all<float>();
  check_all<simmim::Half>();
  check_all<simmim::BFloat16>();
  return simt::finish("special_rows");
}

// Packing, counting and decompressing bitmaps, emulated, against the CPU's and the mask itself.
#include "../../csrc/kernels/compressed_linear.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"

namespace {

template <typename Item>
void check(int64_t weights, double density) {
  std::mt19937 random(static_cast<unsigned>(weights));
  std::vector<uint8_t> mask(weights);
  std::vector<Item> values, wanted(weights);
  for (int64_t i = 0; i < weights; ++i) {
    mask[i] = std::bernoulli_distribution(density)(random);
    if (mask[i]) values.push_back(wanted[i] = static_cast<Item>(i + 1));
  }
  const int64_t bytes = simmim::bitmap_bytes(weights);
  std::vector<uint8_t> bitmap(bytes, 0xee), expected(bytes);
  int error = simmim::pack_bits_cuda({mask.data(), bitmap.data(), weights}, nullptr);
  simmim::pack_bits_cpu({mask.data(), expected.data(), weights}, 0, bytes);
  simt::check(error == 0 && bitmap == expected, "pack_bits: weights=%ld", weights);
  if (weights % 8 != 0) bitmap.back() |= 0xff << (weights % 8);  // bits beyond do not count

  const int64_t segments = (weights + simmim::kSegmentWeights - 1) / simmim::kSegmentWeights;
  std::vector<int64_t> kept(segments, -9), first(segments);
  error = simmim::count_segments_cuda(bitmap.data(), weights, kept.data(), nullptr);
  int64_t before = 0, wrong = 0;
  for (int64_t s = 0; s < segments; ++s) {
    const auto begin = mask.begin() + s * simmim::kSegmentWeights;
    const auto end = std::min(begin + simmim::kSegmentWeights, mask.end());
    wrong += kept[s] != std::count(begin, end, 1);
    first[s] = before;
    before += kept[s];
  }
  simt::check(error == 0 && wrong == 0, "count_segments: weights=%ld: %ld", weights, wrong);

  // With a value too few, none must be read: all weights are NaN then.
  for (const int64_t missing : {0, 1}) {
    if (missing > static_cast<int64_t>(values.size())) break;
    const std::vector<Item> given(values.begin(), values.end() - missing);
    const std::vector<Item> nan(weights, static_cast<Item>(~Item{0}));
    std::vector<Item> out(weights, Item(-9));
    error = simmim::decompress_segments_cuda(
        {bitmap.data(), given.data(), static_cast<int64_t>(given.size()), &before, first.data(),
         out.data(), weights, sizeof(Item)},
        nullptr);
    simt::check(error == 0 && out == (missing ? nan : wanted),
                "decompress: weights=%ld item=%zu missing=%ld", weights, sizeof(Item), missing);
  }
}

}  // namespace

int main() {
  for (const int64_t weights : {0, 1, 7, 33, 1023, 1024, 1025, 9000}) {
    check<uint16_t>(weights, 0.3);
    check<uint32_t>(weights, 0.8);
    check<uint64_t>(weights, 0.05);
  }
  check<uint32_t>(3000, 0);
  check<uint32_t>(3000, 1);
  return simt::finish("compressed_linear");
}

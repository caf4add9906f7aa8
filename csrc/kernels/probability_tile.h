// Sums of probabilities by bin. Part of a kernel: see every_target.h.

// Adds the probabilities p [samples, kClasses] of a tile of classes to the sums [bins, kClasses] of
// every feature, sample by sample. Of each sample they are read once and stay in registers for all
// features: what is left is one load and one store of a sum.
template <int kClasses>
inline void add_probabilities(const double* p, int64_t p_stride, int64_t samples,
                              const uint8_t* codes, int64_t codes_stride, int64_t features,
                              int32_t bins, double* sums) {
  using Vector = vector_of<double, kLanes / 2>;
  constexpr int kVectors = kClasses * 2 / kLanes;
  for (int64_t i = 0; i < samples; ++i) {
    Vector row[kVectors];
    std::memcpy(row, p + i * p_stride, sizeof row);
    for (int64_t feature = 0; feature < features; ++feature) {
      const uint8_t code = codes[feature * codes_stride + i];
      if (code >= bins) continue;
      double* to = sums + (feature * bins + code) * kClasses;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        Vector sum;
        std::memcpy(&sum, to + v * kLanes / 2, sizeof sum);
        sum += row[v];
        std::memcpy(to + v * kLanes / 2, &sum, sizeof sum);
      }
    }
  }
}

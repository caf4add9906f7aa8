// Loads values as the type they are binned in, a vector at a time. Part of a kernel: see
// every_target.h.

template <typename Element>
using Lanes = vector_of<Element, kLanes>;
using Words = Lanes<uint32_t>;

template <typename Vector>
[[gnu::always_inline]] inline Vector load_vector(const void* source) {
  Vector result;
  memcpy(&result, source, sizeof result);
  return result;
}

// How many values are binned at a time: as many as fill a vector, of what they are binned in.
template <typename Compute>
constexpr int kValues = kLanes * int{sizeof(float)} / int{sizeof(Compute)};
template <typename Compute>
using Values = vector_of<Compute, kValues<Compute>>;

[[gnu::always_inline]] inline Values<float> load_values(const float* source) {
  return load_vector<Values<float>>(source);
}
[[gnu::always_inline]] inline Values<double> load_values(const double* source) {
  return load_vector<Values<double>>(source);
}
[[gnu::always_inline]] inline Words load_words(const void* source) {
  return __builtin_convertvector(load_vector<Lanes<uint16_t>>(source), Words);
}
[[gnu::always_inline]] inline Values<float> load_values(const BFloat16* source) {
  return (Values<float>)(load_words(source) << 16);
}
[[gnu::always_inline]] inline Values<float> load_values(const Half* source) {
#if defined(SIMMIM_AVX512)
  return (Values<float>)_mm512_maskz_cvtph_ps(0xffff, load_vector<__m256i>(source));
#elif defined(SIMMIM_AVX2)
  return (Values<float>)_mm256_cvtph_ps(load_vector<__m128i>(source));
#else
  const Words bits = load_words(source), magnitude = (bits & 0x7fffu) << 13;  // as half.h has it
  const auto scaled = (Words)((Values<float>)magnitude * 0x1p112f);
  return (Values<float>)(((bits & 0x8000u) << 16) |
                         (magnitude < 0x0f800000u ? scaled : magnitude | 0x7f800000u));
#endif
}

// Positional population count by carry-save addition: how often each bit of a stream of words is
// set, as in Clausecker, Lemire and Schintke, "Faster positional population counts for AVX2,
// AVX-512 and ASIMD" (arXiv 2412.16370). Part of a kernel: see every_target.h.
//
// Counts are held as bit planes: bit b of plane k is bit k of the count of bit b. Adding 16 words
// costs 15 full adders and no memory but the planes.

template <typename Vector>
[[gnu::always_inline]] inline void full_add(Vector a, Vector b, Vector c, Vector& sum,
                                            Vector& carry) {
#if defined(SIMMIM_AVX512)
  if constexpr (sizeof(Vector) == 64) {  // GCC does not find these by itself
    const auto x = (__m512i)a, y = (__m512i)b, z = (__m512i)c;
    sum = (Vector)_mm512_ternarylogic_epi32(x, y, z, 0x96);    // odd
    carry = (Vector)_mm512_ternarylogic_epi32(x, y, z, 0xe8);  // at least two
    return;
  }
#endif
  const Vector either = a ^ b;
  carry = (a & b) | (either & c);
  sum = either ^ c;
}

// Counts of each bit of a Vector of words, up to kMaxRows of them.
template <typename Vector>
struct BitCounts {
  static constexpr int kPlanes = 16;
  static constexpr int kRows = 16;            // words added at a time
  static constexpr int64_t kMaxRows = 65520;  // the most rows of 16 that 16 bits can count

  Vector planes[kPlanes];
  // Carries of weight 256 that wait to enter plane 8. Planes 4 to 7 overflow at most once in 16
  // additions, so that it is enough to clear this every 16th time.
  Vector pending;

  [[gnu::always_inline]] void clear() {
    for (int k = 0; k < kPlanes; ++k) planes[k] = Vector{};
    pending = Vector{};
  }

  // words[0] to words[15]: an array, or what makes each when it is asked for.
  template <typename Rows>
  [[gnu::always_inline]] void add(const Rows& words) {
    add_all(1, [&](int) -> const Rows& { return words; });
  }

  // The words of words_of(0) to words_of(times - 1), without a look at memory in between.
  template <typename WordsOf>
  [[gnu::always_inline]] void add_all(int times, const WordsOf& words_of) {
    add_each<1>(
        this, times,
        [&](int i, int row, Vector* word) {
          const auto& words = words_of(i);
          *word = words[row];
        },
        [] { return true; });
  }

  // Adds to `counts` [kCounts] the words [kCounts] that make(i, row, words) makes of rows 0 to 15
  // of each i below `times`, in this order; unless good() is false then, which is returned.
  template <int kCounts, typename Make, typename Good>
  [[gnu::always_inline]] static bool add_each(BitCounts* counts, int times, const Make& make,
                                              const Good& good) {
    Vector planes[8][kCounts], waiting[kCounts];
    for (int c = 0; c < kCounts; ++c) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) planes[k][c] = counts[c].planes[k];
      waiting[c] = counts[c].pending;
    }
    for (int i = 0; i < times; ++i) {
      Vector ones[2][kCounts], twos[2][kCounts], fours[2][kCounts], eights[2][kCounts];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
        for (int quarter = 0; quarter < 2; ++quarter) {
#pragma GCC unroll 2
          for (int pair = 0; pair < 2; ++pair) {
            const int row = 8 * half + 4 * quarter + 2 * pair;
            make(i, row, ones[0]);
            make(i, row + 1, ones[1]);
            add_level(planes[0], ones, twos[pair]);
          }
          add_level(planes[1], twos, fours[quarter]);
        }
        add_level(planes[2], fours, eights[half]);
      }
      Vector carry[kCounts];
      add_level(planes[3], eights, carry);
#pragma GCC unroll 2
      for (int c = 0; c < kCounts; ++c) {
#pragma GCC unroll 4
        for (int k = 4; k < 8; ++k) half_add(planes[k][c], carry[c]);
        waiting[c] |= carry[c];
      }
    }
    if (!good()) return false;
    for (int c = 0; c < kCounts; ++c) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) counts[c].planes[k] = planes[k][c];
      counts[c].pending = waiting[c];
    }
    return true;
  }

  // Adds two words of each count to its plane.
  template <int kCounts>
  [[gnu::always_inline]] static void add_level(Vector (&plane)[kCounts],
                                               const Vector (&words)[2][kCounts],
                                               Vector (&carry)[kCounts]) {
#pragma GCC unroll 2
    for (int c = 0; c < kCounts; ++c) {
      full_add<Vector>(plane[c], words[0][c], words[1][c], plane[c], carry[c]);
    }
  }

  // Call after every 16th add, and before the counts are read.
  [[gnu::always_inline]] void settle() {
    for (int k = 8; k < kPlanes; ++k) half_add(planes[k], pending);
    pending = Vector{};
  }

  // counts[j] holds, in byte i of each 32-bit word, bits [8 * octet, 8 * octet + 8) of the count of
  // the word's bit 8 * i + j.
  [[gnu::always_inline]] void bytes_of_counts(int octet, Vector* counts) const {
    for (int j = 0; j < 8; ++j) {
      Vector bytes{};
      for (int k = 0; k < 8; ++k) bytes |= ((planes[8 * octet + k] >> j) & 0x01010101u) << k;
      counts[j] = bytes;
    }
  }

  [[gnu::always_inline]] static void half_add(Vector& plane, Vector& carry) {
    const Vector next = plane & carry;
    plane ^= carry;
    carry = next;
  }
};

// Bins values by explicit edges. Part of a kernel: see every_target.h. Included by bin_tile.h.

constexpr int kEdgeBlock = 16;  // edges that are compared with one after another

// Rows of the table of a group of columns: the smallest value that has a bin; those from which on
// bins 1, 2, ... begin, filled up with NaN, which no value reaches; the largest value with a bin.
// Where values below the range are clipped, they reach what the lowest edge reaches.
constexpr int64_t edge_rows(int32_t bins) {
  return (bins + kEdgeBlock - 1) / kEdgeBlock * kEdgeBlock + 1;
}

// The smallest value not below an edge: what is compared as a float agrees with the edge itself.
inline void round_up(double edge, double* value) { *value = edge; }
inline void round_up(double edge, float* value) {
  const auto nearest = static_cast<float>(edge);
  const float infinity = std::numeric_limits<float>::infinity();
  *value = double{nearest} < edge ? std::nextafter(nearest, infinity) : nearest;
}

template <typename Compute>
int64_t edge_table_size(const Binning<Compute>& binning, int64_t columns) {
  if (binning.edges == nullptr) return 0;
  return (columns + kGroup - 1) / kGroup * edge_rows(binning.bins) * kGroup;
}

// Writes the table [groups, edge_rows, kGroup] of columns whose edges are `stride` apart.
template <typename Compute>
void write_edge_table(const Binning<Compute>& binning, int64_t columns, Compute* table) {
  if (binning.edges == nullptr) return;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const int64_t rows = edge_rows(binning.bins);
  for (int64_t first = 0; first < columns; first += kGroup, table += rows * kGroup) {
    const int64_t last = std::min<int64_t>(kGroup, columns - first) - 1;
    for (int64_t c = 0; c < kGroup; ++c) {
      const double* edges = binning.edges + (first + std::min(c, last)) * binning.edge_stride;
      for (int64_t k = 0; k < binning.bins; ++k) {
        const bool all_reach = binning.clip && k > 0 && edges[k] == edges[0];
        round_up(all_reach ? -kInfinity : edges[k], table + k * kGroup + c);
      }
      for (int64_t k = binning.bins; k < rows - 1; ++k) {
        table[k * kGroup + c] = std::numeric_limits<Compute>::quiet_NaN();
      }
      Compute& high = table[(rows - 1) * kGroup + c];
      round_up(-edges[binning.bins], &high);
      high = -high;
    }
  }
}

template <typename Compute>
using Places =
    vector_of<std::conditional_t<sizeof(Compute) == 4, int32_t, int64_t>, kValues<Compute>>;

// table[place] of each lane.
[[gnu::always_inline]] inline Values<float> look_up(const float* table, Places<float> place) {
#if defined(SIMMIM_AVX512)
  return (Values<float>)_mm512_mask_i32gather_ps(__m512{}, 0xffff, (__m512i)place, table, 4);
#elif defined(SIMMIM_AVX2)
  return (Values<float>)_mm256_i32gather_ps(table, (__m256i)place, 4);
#else
  Values<float> found;
  for (int lane = 0; lane < kValues<float>; ++lane) found[lane] = table[place[lane]];
  return found;
#endif
}
[[gnu::always_inline]] inline Values<double> look_up(const double* table, Places<double> place) {
#if defined(SIMMIM_AVX512)
  return (Values<double>)_mm512_mask_i64gather_pd(__m512d{}, 0xff, (__m512i)place, table, 8);
#elif defined(SIMMIM_AVX2)
  return (Values<double>)_mm256_i64gather_pd(table, (__m256i)place, 8);
#else
  Values<double> found;
  for (int lane = 0; lane < kValues<double>; ++lane) found[lane] = table[place[lane]];
  return found;
#endif
}

// edge_bin of binning.h, lane by lane, or kNoBin: how many of the inner edges a value reaches, of
// few edges by comparing with each, of more by comparing with every 16th, then by bisection.
template <bool kClip, typename Stored, typename Compute = compute_t<Stored>>
[[gnu::always_inline]] inline void bin_row_by_edges(const Stored* row, const Compute* table,
                                                    int32_t bins, int32_t* bin) {
  constexpr int kStep = kValues<Compute>;
  const int64_t rows = edge_rows(bins);
  for (int first = 0; first < kGroup; first += kStep, table += kStep) {
    const Values<Compute> value = load_values(row + first);
    const auto reaches = [&](int64_t k) {
      return value >= load_vector<Values<Compute>>(table + k * kGroup);
    };
    Places<Compute> place{};
    if (bins <= kEdgeBlock) {
      for (int k = 1; k < bins; ++k) place -= reaches(k);
    } else {
      for (int k = kEdgeBlock; k < bins; k += kEdgeBlock) place -= reaches(k);
      Places<Compute> at;
      for (int lane = 0; lane < kStep; ++lane) at[lane] = lane;
      at += place * (kEdgeBlock * kGroup);
#pragma GCC unroll 4
      for (int step = kEdgeBlock / 2; step > 0; step /= 2) {
        const Places<Compute> next = at + step * kGroup;
        at = value >= look_up(table, next) ? next : at;
      }
      place = at / kGroup;
    }
    if constexpr (kClip) {
      place = value == value ? place : Places<Compute>{} + kNoBin;
    } else {
      const auto high = load_vector<Values<Compute>>(table + (rows - 1) * kGroup);
      place = reaches(0) & (value <= high) ? place : Places<Compute>{} + kNoBin;
    }
    const auto result = __builtin_convertvector(place, vector_of<int32_t, kStep>);
    memcpy(bin + first, &result, sizeof result);
  }
}

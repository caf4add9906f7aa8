// Part of predictive_cpu.cpp, for each of its targets: see every_target.h.

constexpr int kSamples = kLanes / 2;
using Doubles = vector_of<double, kSamples>;
using Longs = vector_of<int64_t, kSamples>;

inline Doubles where(const Longs& mask, const Doubles& x) {  // else 0
  return reinterpret_cast<Doubles>(mask & reinterpret_cast<Longs>(x));
}

// exp(x) of x <= 0, within some 1e-16 of it; 0 below exp(-708), before it is no normal number.
// exp(x) = 2^k exp(r) with |r| <= ln(2) / 2, and Taylor's series of exp(r).
inline Doubles exp_of(const Doubles& x) {
  constexpr double kLog2 = 0x1.62e42fefa39efp-1;
  // ln 2 in two parts, of which k times the first is exact.
  constexpr double kHigh = 0x1.62e42feep-1, kLow = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;  // added to a small number, leaves an integer's bits
  constexpr double kSeries[] = {1.0 / 6227020800,
                                1.0 / 479001600,
                                1.0 / 39916800,
                                1.0 / 3628800,
                                1.0 / 362880,
                                1.0 / 40320,
                                1.0 / 5040,
                                1.0 / 720,
                                1.0 / 120,
                                1.0 / 24,
                                1.0 / 6,
                                1.0 / 2,
                                1.0,
                                1.0};
  const Doubles rounded = x * (1 / kLog2) + kRound;
  const Doubles k = rounded - kRound;
  const Doubles r = x - k * kHigh - k * kLow;
  Doubles series = Doubles{} + kSeries[0];
#pragma GCC unroll 16
  for (size_t i = 1; i < std::size(kSeries); ++i) series = series * r + kSeries[i];
  const Longs scaled = reinterpret_cast<Longs>(series) + (reinterpret_cast<Longs>(rounded) << 52);
  return where(x >= -708.0, reinterpret_cast<Doubles>(scaled));
}

// The logits [classes] of `count` samples from `first` on; beyond them 0.
template <typename Scalar>
inline void load_logits(const PredictiveInformationArgs<Scalar>& args, int64_t first, int64_t count,
                        Doubles* logits) {
  const Scalar* rows = args.logits + first * args.classes;
  for (int64_t c = 0; c < args.classes; ++c) {
    logits[c] = Doubles{};
    if (count == kSamples) {
#pragma GCC unroll 8
      for (int i = 0; i < kSamples; ++i) logits[c][i] = double(rows[i * args.classes + c]);
    } else {
      for (int64_t i = 0; i < count; ++i) logits[c][i] = double(rows[i * args.classes + c]);
    }
  }
}

// The first of `count` samples with NaN, +inf or no finite logit at all, or -1.
inline int64_t find_bad(const Doubles* logits, int64_t classes, int64_t count, Doubles& largest) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Longs nan = {};
  largest = Doubles{} - kInfinity;
  for (int64_t c = 0; c < classes; ++c) {
    nan |= logits[c] != logits[c];
    largest = logits[c] > largest ? logits[c] : largest;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (nan[i] != 0 || std::isinf(largest[i])) return i;
  }
  return -1;
}

// Sums over the samples of one lane each.
struct LaneSums {
  static constexpr int kFactors = 16;  // of at most as many as there are classes: a finite product
  Doubles entropy = {};                // of H(p(y|x)), without the logarithms of:
  Doubles product = Doubles{} + 1.0;
  int factors = 0;

  void add(const Doubles& weights, const Doubles& weighted) {
    entropy -= weighted;
    product *= weights;
    if (++factors == kFactors) add_logarithms();
  }
  void add_logarithms() {
    for (int i = 0; i < kSamples; ++i) entropy[i] += std::log(product[i]);
    product = Doubles{} + 1.0;
    factors = 0;
  }
};

template <typename Scalar>
inline void predictive_sums(const PredictiveInformationArgs<Scalar>& args, int64_t begin,
                            int64_t end, PredictiveSums& sums) {
  constexpr int kParts = static_cast<int>(kPredictiveLanes) / kSamples;
  std::vector<CacheLine> lines(args.classes + lines_of<Doubles>(args.classes));
  auto* const totals = reinterpret_cast<Doubles*>(lines.data());  // [classes, kParts]
  Doubles* const tile = totals + args.classes * kParts;           // [classes]
  LaneSums lanes[kParts];
  for (int64_t first = begin; first < end; first += kSamples) {
    const int64_t part = (first - begin) / kSamples % kParts;
    const int64_t count = std::min<int64_t>(kSamples, end - first);
    load_logits(args, first, count, tile);
    Doubles largest;
    const int64_t bad = find_bad(tile, args.classes, count, largest);
    if (bad >= 0) {
      sums.bad_sample = first + bad;
      return;
    }
    Doubles weights = {}, weighted = {};
    for (int64_t c = 0; c < args.classes; ++c) {
      const Doubles shifted = tile[c] - largest;
      tile[c] = exp_of(shifted);
      weights += tile[c];
      weighted += tile[c] * where(tile[c] > 0.0, shifted);  // of -inf nothing
    }
    Doubles shares = 1.0 / weights;
    for (int64_t i = count; i < kSamples; ++i) weights[i] = 1, shares[i] = 0;
    for (int64_t c = 0; c < args.classes; ++c) totals[c * kParts + part] += tile[c] * shares;
    lanes[part].add(weights, weighted * shares);
  }
  for (LaneSums& part : lanes) part.add_logarithms();
  for (int part = 0; part < kParts; ++part) {
    for (int i = 0; i < kSamples; ++i) {
      sums.entropy += lanes[part].entropy[i];
      for (int64_t c = 0; c < args.classes; ++c) {
        sums.probabilities[c] += totals[c * kParts + part][i];
      }
    }
  }
}

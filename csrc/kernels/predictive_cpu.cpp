// With s = logit - max and Z = sum exp(s): p = exp(s) / Z and H(p) = ln Z - sum p s. A logit of
// -inf is a class that is ruled out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "cpu_capability.h"
#include "predictive.h"
#include "vectors.h"

#define SIMMIM_KERNEL "predictive_tile.h"
// A fused multiply and add rounds once, and not every target has one.
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#include "every_target.h"
#pragma GCC pop_options

namespace simmim {

template <typename Scalar>
void predictive_sums_cpu(const PredictiveInformationArgs<Scalar>& args, int64_t begin, int64_t end,
                         PredictiveSums& sums) {
  SIMMIM_BEST_TARGET(predictive_sums, args, begin, end, sums);
}

template void predictive_sums_cpu(const PredictiveInformationArgs<float>&, int64_t, int64_t,
                                  PredictiveSums&);
template void predictive_sums_cpu(const PredictiveInformationArgs<double>&, int64_t, int64_t,
                                  PredictiveSums&);

}  // namespace simmim

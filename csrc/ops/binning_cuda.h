// Binning on CUDA, where what values are given is checked by the kernels that read them.
#pragma once

#ifdef SIMMIM_WITH_CUDA

#include <functional>
#include <vector>

#include "binning.h"
#include "information_cuda.h"

namespace simmim {

// Kinds of faults that binning may have; an operator's own come after them.
enum BinningFault : int64_t {
  kBadRange,
  kNoScale,
  kInfiniteEdge,
  kDescendingEdge,
  kUncounted,  // for `work` to report: the first feature of which a sample has no bin and must
  kBinningFaults,
};

// Calls work(binning, faults), which launches what bins x, and returns the faults that were found
// once those of binning have been raised. Waits for the device once; but where a range has no scale
// in x's own arithmetic, work is called again with edges instead.
std::vector<int64_t> bin_on_cuda(const at::Tensor& x, const BinningRequest& request, int64_t kinds,
                                 const std::function<void(const ResolvedBinning&, Faults&)>& work);

// Where kernels report samples without a bin: nowhere if those are no error.
inline int64_t* uncounted(const at::Tensor& x, const BinningRequest& request, Faults& faults) {
  return must_count_all(x, request) ? faults[kUncounted] : nullptr;
}

// Counts [features, bins] int64, launched only.
at::Tensor count_on_cuda(const at::Tensor& x, const BinningRequest& request,
                         const ResolvedBinning& binning, Faults& faults);

}  // namespace simmim

#endif

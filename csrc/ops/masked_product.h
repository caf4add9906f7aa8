// What dense products with masked weights need to be exact.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace simmim {

// y = x W^T + b, W [out, in] holding 0 where it is masked. Masked weights contribute nothing, but
// their 0 times an infinity or NaN of x is NaN: rows of y whose x has some are computed again, all
// in one sparse product. `weight` and `mask` are asked for then only.
void recompute_special_rows(at::Tensor& y, const at::Tensor& x,
                            const std::function<at::Tensor()>& weight,
                            const std::function<at::Tensor()>& mask,
                            const std::optional<at::Tensor>& bias);

}  // namespace simmim

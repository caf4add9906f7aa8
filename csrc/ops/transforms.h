// Derivatives that torch does not take through a C++ autograd function: an operator is composed of
// torch's own there.
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace simmim {

// Whether a transform of torch.func is at work that takes derivatives, or vmap.
inline bool is_transformed() {
  const auto& transforms = at::functorch::functorchTLSAccessor();
  if (!transforms) return false;  // none was ever used in this thread
  try {
    transforms->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    return true;
  }
  return false;
}

// Whether it carries a derivative forward, as in torch.autograd.forward_ad.
inline bool has_tangent(const at::Tensor& t) { return t._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const std::optional<at::Tensor>& t) {
  return t.has_value() && has_tangent(*t);
}

}  // namespace simmim

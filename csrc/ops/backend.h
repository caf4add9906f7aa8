// What the operators need to know of devices.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#ifdef SIMMIM_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace simmim {

#ifdef SIMMIM_WITH_CUDA
// Runs launch(stream) on the tensor's device and current stream, and checks what it returns.
template <typename Launch>
void on_cuda(const at::Tensor& tensor, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(tensor.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(c10::cuda::getCurrentCUDAStream().stream())));
}
#endif

// Registered for CUDA by operators that have no CUDA kernel: a clear error, never a silent copy.
inline void raise_no_cuda_kernel(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              " has no CUDA kernel yet; move its arguments with .cpu()");
}
inline torch::CppFunction no_cuda_kernel() {
  return torch::CppFunction::makeFromBoxedFunction<&raise_no_cuda_kernel>();
}

}  // namespace simmim

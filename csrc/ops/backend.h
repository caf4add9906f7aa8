// What the operators need to know of devices.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#if defined(SIMMIM_WITH_CUDA) && !defined(SIMMIM_EMULATED_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

// The dispatch keys of what runs on the CPU and on CUDA. Where CUDA is emulated, for tests on a
// machine without a GPU, the operators' CUDA code serves the CPU's tensors, and theirs nobody.
#ifdef SIMMIM_EMULATED_CUDA
#define SIMMIM_CPU_KEY XLA
#define SIMMIM_CUDA_KEY CPU
#else
#define SIMMIM_CPU_KEY CPU
#define SIMMIM_CUDA_KEY CUDA
#endif

// What an operator registers for CUDA: its function there, or an error in a build without CUDA.
#ifdef SIMMIM_WITH_CUDA
#define SIMMIM_ON_CUDA(function) &simmim::function
#else
#define SIMMIM_ON_CUDA(function) simmim::no_cuda_kernel()
#endif

namespace simmim {

#ifdef SIMMIM_EMULATED_CUDA
inline bool runs_on_cuda(const at::Tensor&) { return true; }
inline bool is_capturing(const at::Tensor&) { return false; }
template <typename Launch>
void on_cuda(const at::Tensor&, const Launch& launch) {
  TORCH_CHECK(launch(nullptr) == 0, "a launch failed");
}
#elif defined(SIMMIM_WITH_CUDA)
inline bool runs_on_cuda(const at::Tensor& x) { return x.is_cuda(); }
// Whether the current stream records a CUDA graph, so that no value can be read back.
inline bool is_capturing(const at::Tensor& x) {
  return x.is_cuda() &&
         c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}
// Runs launch(stream) on the tensor's device and current stream, and checks what it returns.
template <typename Launch>
void on_cuda(const at::Tensor& tensor, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(tensor.device());
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(c10::cuda::getCurrentCUDAStream().stream())));
}
#else
inline bool runs_on_cuda(const at::Tensor&) { return false; }
inline bool is_capturing(const at::Tensor&) { return false; }
#endif

// What kernels that report the smallest index at fault leave where there is none.
constexpr int64_t kNoFault = INT64_MAX;

// Whether a condition [] holds, which on CUDA waits for the device. While a graph is recorded it
// can't be known, and counts as holding: what then fails it gives NaN.
inline bool holds(const at::Tensor& condition) {
  return is_capturing(condition) || condition.item<bool>();
}

// The operator as the dispatcher calls it, for the operators that call each other.
template <typename Signature>
c10::TypedOperatorHandle<Signature> dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

// Registered for CUDA in a build without it: a clear error, never a silent copy.
inline void raise_no_cuda_kernel(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              " was built without its CUDA kernel; rebuild with SIMMIM_CUDA=1, or "
                              "move its arguments with .cpu()");
}
inline torch::CppFunction no_cuda_kernel() {
  return torch::CppFunction::makeFromBoxedFunction<&raise_no_cuda_kernel>();
}

}  // namespace simmim

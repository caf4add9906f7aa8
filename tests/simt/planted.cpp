// Kernels with one bug each, to show that the emulation catches it: argv[1] names the bug.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/kernels/launch.cuh"

namespace {

constexpr int kThreads = 96;

// Reverses a block's values through shared memory.
__global__ void reverse(const int* in, int* out, bool with_barrier, int excess) {
  int* shared = simmim::shared_memory<int>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x + excess] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void beyond_shared_memory(int* out) {
  int* shared = simmim::shared_memory<int>();
  shared[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 0;
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void uninitialised(int* out) { out[threadIdx.x] = *simmim::shared_memory<int>(); }

}  // namespace

int main(int, char** argv) {
  const auto is = [&](const char* name) { return strcmp(argv[1], name) == 0; };
  std::vector<int> in(kThreads), out(kThreads, -1);
  for (int i = 0; i < kThreads; ++i) in[i] = i;
  const size_t bytes = kThreads * sizeof(int);
  const auto run = [&](auto kernel, auto... arguments) {
    return simmim::launch(kernel, dim3(1), dim3(kThreads), bytes, nullptr, arguments...);
  };
  if (is("none")) run(reverse, (const int*)in.data(), out.data(), true, 0);
  if (is("missing barrier")) run(reverse, (const int*)in.data(), out.data(), false, 0);
  if (is("out of bounds")) run(reverse, (const int*)in.data(), out.data(), true, 1);
  if (is("beyond shared memory")) run(beyond_shared_memory, out.data());
  if (is("divergent barrier")) run(divergent_barrier, out.data());
  if (is("uninitialised")) run(uninitialised, out.data());
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) wrong += out[i] != kThreads - 1 - i;
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}

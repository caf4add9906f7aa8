// Kernels with one bug each, to show that the emulation catches it: argv[1] names the bug.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/kernels/launch.cuh"
#include "../../csrc/kernels/tensor_core.cuh"

namespace {

constexpr int kThreads = 96;

// Reverses a block's values through shared memory.
__global__ void reverse(const int* in, int* out, bool with_barrier, int excess) {
  int* shared = simmim::shared_memory<int>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x + excess] = shared[kThreads - 1 - threadIdx.x];
}

// Reverses the 16-bit rows that a warp's lanes write for one another; matrix 0 comes back.
__global__ void reverse_rows(int* out, bool with_barrier) {
  constexpr int kLanes = 32, kItems = 8;
  auto* shared = simmim::shared_memory<uint16_t>();
  const int lane = threadIdx.x;
  for (int i = 0; i < kItems; ++i) {
    shared[(kLanes - 1 - lane) * kItems + i] = static_cast<uint16_t>(lane * kItems + i);
  }
  if (with_barrier) __syncwarp();
  uint32_t matrices[4];
  simmim::load_matrices(matrices, shared + lane * kItems);
  const int row = lane / 4, column = lane % 4 * 2;
  out[lane] = static_cast<int>(matrices[0] & 0xffff) == (kLanes - 1 - row) * kItems + column;
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
  if (is("rows") || is("missing warp barrier")) {
    std::vector<int> right(32);
    simmim::launch(reverse_rows, dim3(1), dim3(32), 32 * 8 * sizeof(uint16_t), nullptr,
                   right.data(), is("rows"));
    const auto wrong = std::count(right.begin(), right.end(), 0);
    std::printf("%d wrong\n", static_cast<int>(wrong));
    return wrong != 0;
  }
  if (is("out of bounds")) run(reverse, (const int*)in.data(), out.data(), true, 1);
  if (is("beyond shared memory")) run(beyond_shared_memory, out.data());
  if (is("divergent barrier")) run(divergent_barrier, out.data());
  if (is("early without waiting")) {
    simmim::launch_early(beyond_shared_memory, dim3(1), dim3(kThreads - 1), bytes, nullptr,
                         out.data());
  }
  if (is("uninitialised")) run(uninitialised, out.data());
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) wrong += out[i] != kThreads - 1 - i;
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else  // as where a whole extension is emulated, in a Python without it
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#define __sanitizer_start_switch_fiber(fake_stack, stack, bytes) static_cast<void>(fake_stack)
#define __sanitizer_finish_switch_fiber(fake_stack, stack, bytes)
#endif

namespace simmim {
alignas(128) unsigned char simmim_shared_memory[simt::kSharedCapacity];
}  // namespace simmim

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned char kPattern = 0xa5;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  enum State { ready, at_block_barrier, at_warp_barrier, finished };

  dim3 index;  // threadIdx
  State state;
  unsigned warp_mask;  // of the warp barrier it waits at
  bool waited;         // for the kernel before this one
  uint64_t deposit;    // what it offers to its warp
  uint32_t fragment[6];
  uint16_t matrix_row[8];
  std::deque<std::vector<Copy>> copies;  // in groups, the last not yet closed
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
};

std::vector<std::unique_ptr<Fiber>> fibers;  // those of the running block are the first `running`
size_t running;
Fiber* self;
ucontext_t scheduler;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
const std::function<void()>* body;
std::mt19937& random_source() {
  static std::mt19937 source([] {
    const char* seed = std::getenv("SIMT_SEED");
    return seed == nullptr ? 0 : std::atoi(seed);
  }());
  return source;
}

[[noreturn]] void fail(const char* reason) {
  std::fprintf(stderr, "simt: %s\n", reason);
  std::exit(3);
}

void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*body)();
  self->state = Fiber::finished;
  void** no_fake_stack = nullptr;  // the fiber's, which ends
  __sanitizer_start_switch_fiber(no_fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self->context, &scheduler);
}

void start(Fiber& fiber, dim3 index) {
  fiber.index = index;
  fiber.state = Fiber::ready;
  fiber.waited = false;
  fiber.copies.assign(1, {});
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.context, enter, 0);
}

void yield() {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self->context, &scheduler);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void resume(Fiber& fiber) {
  self = &fiber;
  threadIdx = fiber.index;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.data(), kStackBytes);
  swapcontext(&scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

size_t index_of(const Fiber& fiber) {
  return (fiber.index.z * blockDim.y + fiber.index.y) * blockDim.x + fiber.index.x;
}

// Releases a warp barrier once all lanes of its mask wait at it. Returns whether it did.
bool release_warp(size_t first) {
  const size_t lanes = std::min<size_t>(kWarpSize, running - first);
  for (size_t l = 0; l < lanes; ++l) {
    const Fiber& fiber = *fibers[first + l];
    if (fiber.state != Fiber::at_warp_barrier) continue;
    const unsigned mask =
        lanes == kWarpSize ? fiber.warp_mask : fiber.warp_mask & ((1u << lanes) - 1);
    bool all = true;
    for (size_t m = 0; m < lanes; ++m) {
      const Fiber& other = *fibers[first + m];
      if (mask >> m & 1) {
        all &= other.state == Fiber::at_warp_barrier && other.warp_mask == fiber.warp_mask;
      }
    }
    if (!all) continue;
    for (size_t m = 0; m < lanes; ++m) {
      if (mask >> m & 1) fibers[first + m]->state = Fiber::ready;
    }
    return true;
  }
  return false;
}

void run_block() {
  std::vector<Fiber*> ready;
  for (;;) {
    ready.clear();
    size_t waiting = 0, done = 0;
    for (size_t i = 0; i < running; ++i) {
      waiting += fibers[i]->state == Fiber::at_block_barrier;
      done += fibers[i]->state == Fiber::finished;
      if (fibers[i]->state == Fiber::ready) ready.push_back(fibers[i].get());
    }
    if (done == running) return;
    if (!ready.empty()) {
      std::shuffle(ready.begin(), ready.end(), random_source());
      for (Fiber* fiber : ready) resume(*fiber);
      continue;
    }
    bool released = false;
    for (size_t first = 0; first < running; first += kWarpSize) released |= release_warp(first);
    if (released) continue;
    if (waiting != running) fail("a barrier that not every thread of the block or mask reaches");
    for (size_t i = 0; i < running; ++i) fibers[i]->state = Fiber::ready;
  }
}

}  // namespace

void wait_for_previous() { self->waited = true; }

int lane() { return static_cast<int>(index_of(*self) % kWarpSize); }

void sync_block() {
  self->state = Fiber::at_block_barrier;
  yield();
}

void sync_warp(unsigned mask) {
  if (!(mask >> lane() & 1)) fail("a warp operation by a lane that its mask leaves out");
  self->state = Fiber::at_warp_barrier;
  self->warp_mask = mask;
  yield();
}

void step() {
  if (random_source()() % 8 == 0) yield();
}

uint64_t exchange(unsigned mask, uint64_t value, int source_lane) {
  if (!(mask >> source_lane & 1)) fail("a shuffle from a lane that its mask leaves out");
  const size_t source = index_of(*self) - lane() + source_lane;
  self->deposit = value;
  sync_warp(mask);
  if (source >= running) fail("a shuffle from a lane beyond the block");
  const uint64_t result = fibers[source]->deposit;
  sync_warp(mask);  // nobody deposits anew before all have read
  return result;
}

unsigned vote(unsigned mask, bool predicate) {
  const size_t first = index_of(*self) - lane();
  self->deposit = predicate;
  sync_warp(mask);
  unsigned result = 0;
  for (size_t l = 0; l < kWarpSize && first + l < running; ++l) {
    if ((mask >> l & 1) && fibers[first + l]->deposit != 0) result |= 1u << l;
  }
  sync_warp(mask);
  return result;
}

void copy_async(void* shared, const void* global, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes != 0) {
    fail("an asynchronous copy that is not aligned to its size");
  }
  if (random_source()() % 2 == 0) {
    memcpy(shared, global, bytes);
  } else {
    self->copies.back().push_back({shared, global, bytes});
  }
}

void copy_async_commit() { self->copies.emplace_back(); }

void copy_async_wait(size_t groups) {
  while (self->copies.size() > groups + 1) {
    for (const Copy& copy : self->copies.front()) memcpy(copy.to, copy.from, copy.bytes);
    self->copies.pop_front();
  }
}

// Deals out four matrices: value(element (r, column) of a matrix, which half of a word) is this
// lane's. A lane reads its row when it comes, which may be before the others have: what these wrote
// for it needs a barrier.
template <typename Value>
static void deal_matrices(uint32_t (&matrices)[4], const uint16_t* row, const Value& value) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix row that is not aligned");
  const size_t first = index_of(*self) - lane();
  memcpy(self->matrix_row, row, sizeof self->matrix_row);
  sync_warp(~0u);
  if (first + kWarpSize > running) fail("a matrix load by less than a warp");
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto at = [&](unsigned r, unsigned column) -> uint32_t {
      return fibers[first + matrix * 8 + r]->matrix_row[column];
    };
    matrices[matrix] = value(at, 0) | value(at, 1) << 16;
  }
  sync_warp(~0u);
}

void load_transposed(uint32_t (&matrices)[4], const uint16_t* row) {
  deal_matrices(matrices, row, [](const auto& at, unsigned half) {
    return at(lane() % 4 * 2 + half, lane() / 4);
  });
}

void load_matrices(uint32_t (&matrices)[4], const uint16_t* row) {
  deal_matrices(matrices, row, [](const auto& at, unsigned half) {
    return at(lane() / 4, lane() % 4 * 2 + half);
  });
}

// Shows this thread's fragment to its warp, whose first fiber is returned.
static size_t show_fragment(const uint32_t (&fragment)[6]) {
  const size_t first = index_of(*self) - lane();
  memcpy(self->fragment, fragment, sizeof fragment);
  sync_warp(~0u);
  if (first + kWarpSize > running) fail("a matrix product by less than a warp");
  return first;
}

void mma_and_popc(int32_t (&sums)[4], const uint32_t (&fragment)[6]) {
  const size_t first = show_fragment(fragment);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int word = 0; word < 8; ++word) {
      const uint32_t a = fibers[first + row % 8 * 4 + word % 4]->fragment[row / 8 + word / 4 * 2];
      const uint32_t b = fibers[first + column * 4 + word % 4]->fragment[4 + word / 4];
      sums[i] += __builtin_popcount(a & b);
    }
  }
  sync_warp(~0u);
}

void mma_bytes(int32_t (&sums)[4], const uint32_t (&fragment)[6]) {
  const size_t first = show_fragment(fragment);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 32; ++k) {
      const int t = k % 16 / 4, upper = k / 16, shift = k % 4 * 8;
      const uint32_t a = fibers[first + row % 8 * 4 + t]->fragment[row / 8 + upper * 2];
      const uint32_t b = fibers[first + column * 4 + t]->fragment[4 + upper];
      sums[i] += static_cast<int32_t>((a >> shift & 255) * (b >> shift & 255));
    }
  }
  sync_warp(~0u);
}

void mma(float (&sums)[4], const uint32_t (&fragment)[6], float (*value)(uint16_t bits)) {
  const size_t first = show_fragment(fragment);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2, upper = k / 8, shift = k % 2 * 16;
      const uint32_t a = fibers[first + row % 8 * 4 + t]->fragment[row / 8 + upper * 2];
      const uint32_t b = fibers[first + column * 4 + t]->fragment[4 + upper];
      sums[i] +=
          value(static_cast<uint16_t>(a >> shift)) * value(static_cast<uint16_t>(b >> shift));
    }
  }
  sync_warp(~0u);
}

uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t float16_bits(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  running = size_t{block.x} * block.y * block.z;
  if (blocks == 0 || running == 0 || running > 1024 || grid.y > 65535 || grid.z > 65535 ||
      config.dynamicSmemBytes > shared_capacity) {
    return cudaErrorInvalidConfiguration;
  }
  const auto unravel = [](size_t n, dim3 size) {
    return dim3(n % size.x, n / size.x % size.y, n / size.x / size.y);
  };
  body = &kernel;
  gridDim = grid;
  blockDim = block;
  while (fibers.size() < running) fibers.push_back(std::make_unique<Fiber>());
  unsigned char* shared = simmim::simmim_shared_memory;
  ASAN_POISON_MEMORY_REGION(shared + config.dynamicSmemBytes,
                            kSharedCapacity - config.dynamicSmemBytes);
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), random_source());
  for (const size_t b : order) {
    blockIdx = unravel(b, grid);
    memset(shared, kPattern, config.dynamicSmemBytes);
    for (size_t i = 0; i < running; ++i) start(*fibers[i], unravel(i, block));
    run_block();
    for (size_t i = 0; i < running && config.numAttrs > 0; ++i) {
      if (!fibers[i]->waited) fail("a kernel that begins early and does not wait");
    }
  }
  ASAN_UNPOISON_MEMORY_REGION(shared, kSharedCapacity);
  return cudaSuccess;
}

}  // namespace simt

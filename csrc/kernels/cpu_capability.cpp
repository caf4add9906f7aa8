#include "cpu_capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace simmim {
namespace {

constexpr CpuCapability kAll[] = {CpuCapability::portable, CpuCapability::avx2,
                                  CpuCapability::avx512, CpuCapability::avx512_bf16,
                                  CpuCapability::amx};

#if defined(__x86_64__)
// AMX needs the CPU (int8 and bf16 tiles) and the operating system's leave to use the tile state.
bool amx_is_available() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
  if ((edx & kNeeded) != kNeeded) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuCapability detect() {
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))) {
    return CpuCapability::portable;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
    return CpuCapability::avx2;
  }
  if (!(__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2"))) {
    return CpuCapability::avx512;
  }
  return amx_is_available() ? CpuCapability::amx : CpuCapability::avx512_bf16;
}
#else
CpuCapability detect() { return CpuCapability::portable; }
#endif

CpuCapability parse(const std::string& name) {
  for (CpuCapability capability : kAll) {
    if (name != name_of(capability)) continue;
    if (capability > best_cpu_capability()) {
      throw std::invalid_argument("SIMMIM_CPU_CAPABILITY: this CPU offers at most '" +
                                  std::string(name_of(best_cpu_capability())) + "', got '" + name +
                                  "'; ask for that or a lower one");
    }
    return capability;
  }
  throw std::invalid_argument(
      "SIMMIM_CPU_CAPABILITY: must be 'portable', 'avx2', 'avx512', 'avx512_bf16' or 'amx', got '" +
      name + "'");
}

std::atomic<CpuCapability>& current() {
  static std::atomic<CpuCapability> capability = [] {
    const char* forced = std::getenv("SIMMIM_CPU_CAPABILITY");
    return forced != nullptr && *forced != '\0' ? parse(forced) : best_cpu_capability();
  }();
  return capability;
}

}  // namespace

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx2:
      return "avx2";
    case CpuCapability::avx512:
      return "avx512";
    case CpuCapability::avx512_bf16:
      return "avx512_bf16";
    case CpuCapability::amx:
      return "amx";
    default:
      return "portable";
  }
}

CpuCapability best_cpu_capability() {
  static const CpuCapability best = detect();
  return best;
}

CpuCapability cpu_capability() { return current().load(std::memory_order_relaxed); }

void set_cpu_capability(const std::string& name) { current() = parse(name); }

}  // namespace simmim

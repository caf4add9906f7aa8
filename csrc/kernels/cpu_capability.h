// Which instruction set the CPU kernels use. Chosen at run time: an extension is built once.
#pragma once

#include <string>

// A kernel is one always_inline function, compiled again inside a function of each of these
// targets: flags for the whole extension would make it crash on older machines.
#if defined(__x86_64__)
#define SIMMIM_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt")))
#define SIMMIM_TARGET_AVX512 \
  __attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")))
#define SIMMIM_TARGET_AVX512_BF16             \
  __attribute__((                             \
      target("avx2,fma,f16c,bmi,bmi2,popcnt," \
             "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16")))
#define SIMMIM_TARGET_AMX __attribute__((target("avx512f,amx-tile,amx-bf16")))
#endif

namespace simmim {

// avx512_bf16 has its products of bfloat16, VBMI and VBMI2 (Zen 4, Ice Lake's successors), amx
// those too.
enum class CpuCapability { portable, avx2, avx512, avx512_bf16, amx };

// The best this machine offers, or the lower one that SIMMIM_CPU_CAPABILITY asks for.
// Throws std::invalid_argument where that names an unknown or an unavailable one.
CpuCapability cpu_capability();

// Whether the core is one of Intel's for servers, as all with AMX are so far. It loads two 512-bit
// vectors in a cycle, from an L1 cache of twelve ways, but shuffles on a port of its multiply-adds;
// with AMD's it is the other way.
inline bool is_intel_server() { return cpu_capability() >= CpuCapability::amx; }

// Forces a capability on the whole process, as the environment variable does (for tests and
// benchmarks). Throws std::invalid_argument likewise.
void set_cpu_capability(const std::string& name);

CpuCapability best_cpu_capability();
const char* name_of(CpuCapability capability);

}  // namespace simmim

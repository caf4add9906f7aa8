// Compiles a kernel for every instruction set: includes SIMMIM_KERNEL once in each of the
// namespaces portable, avx2 and avx512, where kLanes is how many 32-bit lanes a vector has.
// SIMMIM_AVX2 or SIMMIM_AVX512 is defined in the latter two, for intrinsics.
//
// What it names is part of a source file: it has neither include guard nor namespace, includes no
// header but such parts, and its .cpp includes the headers that it needs before. Why not templates
// that are inlined into one function for each target: GCC breaks the vectors of a function into
// what its own target has before it inlines it, which leaves comparisons of 512-bit vectors to
// scalars.

namespace simmim {
namespace {

namespace portable {
constexpr int kLanes = 4;
#include SIMMIM_KERNEL
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
#define SIMMIM_AVX2
namespace avx2 {
constexpr int kLanes = 8;
#include SIMMIM_KERNEL
}  // namespace avx2
#undef SIMMIM_AVX2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")
#define SIMMIM_AVX512
namespace avx512 {
constexpr int kLanes = 16;
#include SIMMIM_KERNEL
}  // namespace avx512
#undef SIMMIM_AVX512
#pragma GCC pop_options
#endif

}  // namespace
}  // namespace simmim

// Calls the function of that name in the best namespace that cpu_capability() allows.
#if defined(__x86_64__)
#define SIMMIM_BEST_TARGET(function, ...)                                                        \
  (::simmim::cpu_capability() >= ::simmim::CpuCapability::avx512 ? avx512::function(__VA_ARGS__) \
   : ::simmim::cpu_capability() >= ::simmim::CpuCapability::avx2                                 \
       ? avx2::function(__VA_ARGS__)                                                             \
       : portable::function(__VA_ARGS__))
#else
#define SIMMIM_BEST_TARGET(function, ...) portable::function(__VA_ARGS__)
#endif

// What lets one inline function serve the CPU kernels, the CUDA kernels and the tests of both.
#pragma once

#if defined(__CUDACC__)
#define SIMMIM_HD __host__ __device__ __forceinline__
#else
#define SIMMIM_HD inline __attribute__((always_inline))
#endif

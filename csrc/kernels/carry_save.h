// bit_counts.h for kernels that are compiled once, as templates.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace simmim {
#include "bit_counts.h"
}  // namespace simmim

// What the programs count and print: a line for each failure, and how many there were.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace simt {

inline int failures = 0;

__attribute__((format(printf, 2, 3))) inline void check(bool good, const char* format, ...) {
  if (good) return;
  ++failures;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf(": wrong\n");
}

// NaN is close to NaN alone.
inline bool close(double a, double b, double tolerance) {
  return std::isnan(a) ? std::isnan(b) : std::abs(a - b) <= tolerance;
}

inline int finish(const char* family) {
  std::printf("%s: %d failures\n", family, failures);
  return failures != 0;
}

}  // namespace simt

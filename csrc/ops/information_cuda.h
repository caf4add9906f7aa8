// What the operators that return information do alike on CUDA.
//
// Nothing waits for the device but Faults::read, once in a call where it can be (and the operators
// say where it can't). While a CUDA graph is recorded it does not either: then a graph can be made
// of every call but those named, and nothing is raised. What is wrong as a whole makes the result
// NaN, a value or code without a bin is a sample less, and of fewer than two the result is NaN too.
#pragma once

#ifdef SIMMIM_WITH_CUDA

#include <string>
#include <vector>

#include "information.h"

namespace simmim {

// What kernels find wrong with the values they read: of each kind the smallest index at fault.
class Faults {
 public:
  Faults(const at::Tensor& like, int64_t kinds);
  int64_t* operator[](int64_t kind) { return first_.mutable_data_ptr<int64_t>() + kind; }
  void set(int64_t kind, const at::Tensor& index) { first_.select(0, kind).copy_(index); }
  // By kind, -1 where nothing is at fault. Waits for the device.
  std::vector<int64_t> read() const;

 private:
  at::Tensor first_;  // [kinds] int64
};

// Terms with those of small counts in a table on the device.
struct DeviceTerms {
  EntropyTerms terms;
  at::Tensor table;
};
DeviceTerms device_terms(Estimator estimator, int64_t samples, const at::Tensor& like);

// Codes [features, samples] with what every feature of them has.
struct DeviceCodes {
  at::Tensor codes;    // contiguous
  at::Tensor valid;    // [features] int64
  at::Tensor entropy;  // [features] double, nats
  int64_t bins;
  std::string argument;

  // Checks shapes at once, and has kernels report bad codes and features of less than two valid
  // samples as faults of kind `kind` and `kind` + 1.
  DeviceCodes(const at::Tensor& codes, int64_t bins, const EntropyTerms& terms, Faults& faults,
              int64_t kind, const std::string& caller, const std::string& argument);
  // Raises over what was reported.
  void check(const std::vector<int64_t>& faults, int64_t kind, const std::string& caller) const;
};

void report_bad_codes(const at::Tensor& codes, int64_t bins, Faults& faults, int64_t kind);
void check_bad_codes(const std::vector<int64_t>& faults, int64_t kind, const at::Tensor& codes,
                     int64_t bins, const std::string& caller, const std::string& argument);

// Class labels on the device.
struct DeviceLabels {
  at::Tensor labels;    // [samples] int32
  at::Tensor classes;   // [] int64: the largest label + 1, in 1..65,536 whatever the labels
  at::Tensor alphabet;  // [] double: likewise

  // Checks the shape at once; bad labels are reported as a fault of kind `kind`, and the number of
  // classes is what is found of kind `kind` + 1.
  DeviceLabels(const at::Tensor& labels, int64_t samples, Faults& faults, int64_t kind,
               const std::string& caller, const std::string& argument);
  void check(const std::vector<int64_t>& faults, int64_t kind, const at::Tensor& given,
             const std::string& caller, const std::string& argument) const;
};
// The classes that were found, or the most there can be where nobody could look.
int64_t most_classes(const std::vector<int64_t>& faults, int64_t kind);

}  // namespace simmim

#endif

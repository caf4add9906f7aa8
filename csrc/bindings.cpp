// simmim_ext._C, the table of contents: one line for every operator, and what was built.
//
// Each line binds the operator as torch's dispatcher calls it, without torch.ops' parsing of Python
// arguments: eager calls still meet fake tensors, autocast, autograd and the device checks.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "kernels/cpu_capability.h"
#include "ops/interrupt.h"

namespace py = pybind11;
using at::Tensor;
using Maybe = const std::optional<Tensor>&;
using Text = c10::string_view;
using MaybeText = std::optional<c10::string_view>;
using MaybeInt = std::optional<int64_t>;
using MaybeFloat = std::optional<double>;

namespace {

template <typename Signature>
struct Bind;

template <typename Result, typename... Arguments>
struct Bind<Result(Arguments...)> {
  static void as(py::module_& m, const char* name) {
    const auto op = c10::Dispatcher::singleton()
                        .findSchemaOrThrow((std::string("simmim_ext::") + name).c_str(), "")
                        .template typed<Result(Arguments...)>();
    m.def(
        name, [op](Arguments... arguments) { return op.call(arguments...); },
        py::call_guard<py::gil_scoped_release>());
  }
};

py::dict build_info() {
  py::dict info;
  info["torch"] = SIMMIM_TORCH_VERSION;
  info["compiler"] = __VERSION__;
#ifdef SIMMIM_WITH_CUDA
  info["cuda"] = SIMMIM_CUDA_VERSION;
  info["cuda_architectures"] = SIMMIM_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

void simmim::check_interrupt() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("cpu_capability", [] { return simmim::name_of(simmim::cpu_capability()); });
  m.def("best_cpu_capability", [] { return simmim::name_of(simmim::best_cpu_capability()); });
  m.def("set_cpu_capability", &simmim::set_cpu_capability);
  simmim::cpu_capability();  // an unusable SIMMIM_CPU_CAPABILITY fails here, at import

  Bind<Tensor(const Tensor&, int64_t, Maybe, Maybe, Maybe, Text, Text, Text)>::as(m, "histogram");
  Bind<Tensor(const Tensor&, const Tensor&, const Tensor&, Maybe)>::as(m, "masked_linear");
  Bind<Tensor(const Tensor&, const Tensor&, const Tensor&)>::as(m, "masked_linear_input_grad");
  Bind<Tensor(const Tensor&, const Tensor&, const Tensor&)>::as(m, "masked_linear_weight_grad");
  Bind<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&)>::as(m, "compress_weight");
  Bind<Tensor(const Tensor&, const Tensor&, int64_t, int64_t)>::as(m, "decompress_weight");
  Bind<Tensor(const Tensor&, const Tensor&, const Tensor&, Maybe, Maybe, int64_t, int64_t,
              Maybe)>::as(m, "compressed_linear");
  Bind<Tensor(const Tensor&, const Tensor&, const Tensor&, Maybe, int64_t, int64_t)>::as(
      m, "compressed_linear_input_grad");
  Bind<Tensor(const Tensor&, const Tensor&, Text)>::as(m, "pack_sparse_weight");
  Bind<Tensor(const Tensor&, const Tensor&, Maybe, int64_t)>::as(m, "sparse_linear");
  Bind<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, Maybe, Maybe, Maybe, Text, Text, Text,
                                  Text)>::as(m, "discretize");
  Bind<Tensor(const Tensor&, int64_t, Text, Text, Text, Text)>::as(m, "quantile_edges");
  Bind<Tensor(const Tensor&, Text, MaybeFloat, Text)>::as(m, "entropy");
  Bind<Tensor(const Tensor&, int64_t, Maybe, Maybe, Maybe, MaybeFloat, MaybeFloat, Text, Text, Text,
              MaybeFloat, Text)>::as(m, "marginal_entropy");
  Bind<Tensor(const Tensor&, const Tensor&, int64_t, int64_t, Text)>::as(m, "joint_histogram");
  Bind<Tensor(const Tensor&, Text, Text, MaybeText, MaybeFloat, Text)>::as(m, "joint_information");
  Bind<Tensor(const Tensor&, Maybe, int64_t, MaybeInt, Text, Text, MaybeText, MaybeFloat,
              Text)>::as(m, "pairwise_information");
  Bind<Tensor(const Tensor&, const Tensor&, int64_t, Maybe, Maybe, Maybe, Text, Text, Text, Text,
              MaybeText, MaybeFloat, Text)>::as(m, "label_information");
  Bind<Tensor(const Tensor&, const Tensor&, int64_t, MaybeText, MaybeFloat, Text)>::as(
      m, "soft_label_information");
  Bind<Tensor(const Tensor&, Maybe, const Tensor&, int64_t, MaybeInt, MaybeInt, Text, MaybeFloat,
              Text)>::as(m, "conditional_mutual_information");
  Bind<Tensor(const Tensor&, MaybeFloat, Text)>::as(m, "predictive_information");
}

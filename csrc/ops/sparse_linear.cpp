// Linear layers on weights that are packed once for one kernel.
#include "sparse_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "../kernels/half.h"
#include "backend.h"
#include "linear_checks.h"
#include "parallel.h"
#include "transforms.h"

namespace simmim {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr char kPack[] = "pack_sparse_weight";
constexpr char kLinear[] = "sparse_linear";

Layout parse_layout(c10::string_view name) {
  if (name == "element") return Layout::element;
  if (name == "gather") return Layout::gather;
  if (name == "block") return Layout::block;
  if (name == "window") return Layout::window;
  if (name == "planes") return Layout::planes;
  if (name == "tile") return Layout::tile;
  if (name == "pair") return Layout::pair;
  TORCH_CHECK_VALUE(
      false, kPack,
      ": layout must be 'element', 'gather', 'block', 'window', 'planes', 'tile' or 'pair', got '",
      name, "'");
}

Tensor pack_cpu(const Tensor& weight, const Tensor& mask, c10::string_view layout_name) {
  check_weight(kPack, weight, mask);
  TORCH_CHECK_VALUE(std::max(weight.size(0), weight.size(1)) <= kMostPacked, kPack,
                    ": weight must have at most 2^30 rows and columns, got ", weight.sizes(),
                    "; use compressed_linear");
  const Tensor keep = mask.contiguous();
  const Layout layout = parse_layout(layout_name);
  TORCH_CHECK_VALUE(layout != Layout::block ||
                        is_block_mask_cpu(static_cast<const uint8_t*>(keep.const_data_ptr()),
                                          weight.size(0), weight.size(1)),
                    kPack, ": mask must keep or mask whole columns of ", kBlockRows,
                    " rows for layout 'block'; use layout 'element'");
  const bool is_bfloat16 = weight.scalar_type() == at::kBFloat16 && layout == Layout::planes;
  return pack_weight(weight.detach().to(at::kFloat).contiguous(), keep, layout,
                     /*transposed=*/false, is_bfloat16);
}

PackedHeader read_header(const Tensor& packed) {
  const bool readable = packed.scalar_type() == at::kByte && packed.dim() == 1 &&
                        packed.is_contiguous() &&
                        packed.size(0) >= static_cast<int64_t>(sizeof(PackedHeader));
  const PackedHeader header = readable ? header_of(packed) : PackedHeader{};
  TORCH_CHECK_VALUE(
      readable && header.magic == PackedHeader::kMagic && header.bytes == packed.size(0), kLinear,
      ": packed must be what pack_sparse_weight returned, got ", dtype_name(packed), " ",
      packed.sizes());
  // Kernels go by the header wherever it leads them.
  TORCH_CHECK_VALUE(header.checksum == header.sum_words(), kLinear,
                    ": packed must be as pack_sparse_weight returned it, got one whose first ",
                    sizeof header, " bytes were changed; pack the weight again");
  const auto beyond =
      reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % PackedHeader::kAlignment;
  TORCH_CHECK_VALUE(beyond == 0, kLinear, ": packed must begin at a multiple of ",
                    PackedHeader::kAlignment, " bytes, got ", beyond,
                    " bytes beyond one; use packed.clone()");
  return header;
}

// torch's conversions cost a small layer's time: none where there is nothing to do, and none for so
// few elements that a plain loop takes less.
constexpr int64_t kFew = 1 << 12;

Tensor as_float(const Tensor& t) {
  if (t.scalar_type() == at::kFloat && t.is_contiguous()) return t;
  if (t.scalar_type() == at::kBFloat16 && t.is_contiguous() && t.numel() <= kFew) {
    Tensor floats = at::empty(t.sizes(), t.options().dtype(at::kFloat));
    const auto* from = static_cast<const BFloat16*>(t.const_data_ptr());
    std::copy_n(from, t.numel(), floats.mutable_data_ptr<float>());
    return floats;
  }
  return t.to(at::kFloat).contiguous();
}

// Of a float t that is contiguous.
Tensor as_dtype(const Tensor& t, at::ScalarType dtype) {
  if (dtype == at::kBFloat16 && t.numel() <= kFew) {
    Tensor rounded = at::empty(t.sizes(), t.options().dtype(dtype));
    const auto* from = t.const_data_ptr<float>();
    std::transform(from, from + t.numel(), static_cast<BFloat16*>(rounded.mutable_data_ptr()),
                   to_bfloat16);
    return rounded;
  }
  return t.to(dtype);
}

Tensor linear_cpu(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                  int64_t out_features) {
  const PackedHeader header = read_header(packed);
  TORCH_CHECK_VALUE(out_features == header.out_features, kLinear, ": out_features must be ",
                    header.out_features, ", as packed, got ", out_features);
  check_sparse_linear(kLinear, x, header.in_features, bias, out_features);
  const OptionalTensor float_bias =
      bias.has_value() ? OptionalTensor(as_float(*bias)) : std::nullopt;
  const bool takes_half = is_half(header.layout) && x.scalar_type() == at::kBFloat16;
  const Tensor y = packed_linear(takes_half ? x.contiguous() : as_float(x), packed, float_bias);
  return y.scalar_type() == x.scalar_type() ? y : as_dtype(y, x.scalar_type());
}

// A packed weight serves inference alone.
Tensor linear_autograd(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                       int64_t out_features) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(x) && !has_tangent(bias) &&
          (!at::GradMode::is_enabled() ||
           !(x.requires_grad() || (bias.has_value() && bias->requires_grad()))),
      kLinear, ": has no gradient; use compressed_linear, or torch.no_grad()");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return sparse_linear(x, packed, bias, out_features);
}

// The packed weight keeps its precision; the result has autocast's, as linear's does.
template <c10::DeviceType device>
Tensor linear_autocast(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                       int64_t out_features) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return sparse_linear(x, packed, bias, out_features).to(at::autocast::get_autocast_dtype(device));
}

}  // namespace

Tensor sparse_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias,
                     int64_t out_features) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t);
  static const auto op = dispatched<Signature>("simmim_ext::sparse_linear");
  return op.call(x, packed, bias, out_features);
}

at::Tensor pack_weight(const Tensor& weight, const Tensor& mask, Layout layout, bool transposed,
                       bool is_bfloat16) {
  const PackArgs args{weight.const_data_ptr<float>(),
                      static_cast<const uint8_t*>(mask.const_data_ptr()),
                      weight.size(transposed ? 1 : 0),
                      weight.size(transposed ? 0 : 1),
                      layout,
                      transposed,
                      is_bfloat16};
  Tensor packed;
  pack_sparse_cpu(args, [&](int64_t bytes) {
    packed = at::empty({bytes}, mask.options().dtype(at::kByte));
    return packed.mutable_data_ptr();
  });
  return packed;
}

}  // namespace simmim

TORCH_LIBRARY_FRAGMENT(simmim_ext, m) {
  m.def("pack_sparse_weight(Tensor weight, Tensor mask, str layout) -> Tensor");
  m.def("sparse_linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor");
}
TORCH_LIBRARY_IMPL(simmim_ext, SIMMIM_CPU_KEY, m) {
  m.impl("pack_sparse_weight", &simmim::pack_cpu);
  m.impl("sparse_linear", &simmim::linear_cpu);
}
TORCH_LIBRARY_IMPL(simmim_ext, Autograd, m) { m.impl("sparse_linear", &simmim::linear_autograd); }
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCPU, m) {
  m.impl("sparse_linear", &simmim::linear_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(simmim_ext, AutocastCUDA, m) {
  m.impl("sparse_linear", &simmim::linear_autocast<c10::DeviceType::CUDA>);
}

// Lays out a packed weight: sections, each on a cache line of its own, behind a header.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "half.h"
#include "sparse_linear.h"

namespace simmim {

class Packer {
 public:
  explicit Packer(const PackArgs& args)
      : header_{PackedHeader::kMagic, 2 * kAlignment,
                args.layout,          args.out_features,
                args.in_features,     {},
                args.is_bfloat16,     0} {
    static_assert(sizeof(PackedHeader) <= 2 * kAlignment);
  }

  // A section for `count` items, which the caller writes after `allocate`.
  template <typename T>
  void reserve(int section, int64_t count) {
    if (count == 0) return;
    header_.sections[section] = header_.bytes;
    header_.bytes += divide_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    ends_.push_back(header_.bytes);
  }

  // Fills what lies between the sections with 0: equal weights make equal bytes.
  void allocate(const Allocate& allocate) {
    header_.checksum = header_.sum_words();
    bytes_ = static_cast<uint8_t*>(allocate(header_.bytes));
    std::memset(bytes_, 0, 2 * kAlignment);
    for (const int64_t end : ends_) std::memset(bytes_ + end - kAlignment, 0, kAlignment);
    std::memcpy(bytes_, &header_, sizeof header_);
  }

  template <typename T>
  T* section(int section) const {
    return reinterpret_cast<T*>(bytes_ + header_.sections[section]);
  }
  template <typename T>
  void write(int index, const std::vector<T>& items) const {
    if (!items.empty()) std::memcpy(section<T>(index), items.data(), items.size() * sizeof(T));
  }

 private:
  static constexpr int64_t kAlignment = PackedHeader::kAlignment;
  PackedHeader header_;
  std::vector<int64_t> ends_;
  uint8_t* bytes_ = nullptr;
};

// A packed weight of these sections, from section 0 on; one without items is left out.
template <typename... T>
void write_packed(const PackArgs& args, const Allocate& allocate,
                  const std::vector<T>&... sections) {
  Packer packer(args);
  int section = 0;
  (packer.reserve<T>(section++, sections.size()), ...);
  packer.allocate(allocate);
  section = 0;
  (packer.write(section++, sections), ...);
}

// A weight as a layout keeps it.
inline void store(float value, float* stored) { *stored = value; }
inline void store(float value, BFloat16* stored) { *stored = to_bfloat16(value); }

void pack_element_cpu(const PackArgs& args, const Allocate& allocate);
void pack_window_cpu(const PackArgs& args, const Allocate& allocate);
void pack_planes_cpu(const PackArgs& args, const Allocate& allocate);
void pack_tile_cpu(const PackArgs& args, const Allocate& allocate);

}  // namespace simmim

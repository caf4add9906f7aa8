// The keys of a tile of values. Part of a kernel: see every_target.h.

// Writes keys [outer, keys_stride], of which `inner` are used.
template <typename Stored>
void write_keys(const Stored* x, int64_t outer, int64_t outer_stride, int64_t inner,
                int64_t inner_stride, int64_t keys_stride, KeyOf<Stored>* keys) {
  for (int64_t i = 0; i < outer; ++i, x += outer_stride, keys += keys_stride) {
    if (inner_stride == 1) {
      for (int64_t j = 0; j < inner; ++j) keys[j] = key_of(x[j]);
    } else {
      for (int64_t j = 0; j < inner; ++j) keys[j] = key_of(x[j * inner_stride]);
    }
  }
}

// Finds what stands at given places of a column, were it sorted, in a few passes over it: one digit
// of every key after another is counted, among the keys that may be sought, until these are few
// enough to be gathered and sorted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "float_keys.h"

namespace simmim {

// Sorts by one byte after another. Both arrays hold `count` keys; returns the one with the result.
template <typename Key>
Key* radix_sort(Key* keys, Key* spare, int64_t count) {
  for (size_t shift = 0; shift < 8 * sizeof(Key); shift += 8) {
    const auto digit = [&](Key key) { return static_cast<uint8_t>(key >> shift); };
    int64_t begin[257] = {};
    for (int64_t i = 0; i < count; ++i) ++begin[digit(keys[i]) + 1];
    if (std::find(begin, begin + 257, count) != begin + 257) continue;  // all alike
    std::partial_sum(begin, begin + 257, begin);
    for (int64_t i = 0; i < count; ++i) spare[begin[digit(keys[i])]++] = keys[i];
    std::swap(keys, spare);
  }
  return keys;
}

// While it seeks(), add() takes the keys of the whole column, in any pieces, and then end_pass().
// Keys that stand for what is not finite count nowhere. However long the column, this
// takes less than 2 MiB for 32-bit keys, 4 MiB for 64-bit keys.
template <typename Key>
class RankSearch {
 public:
  void start(int64_t samples) {
    depth_ = 0;
    nodes_.assign(1, {0, 0, samples});
    ranks_.clear();
    found_.clear();
    begin_pass(samples);
  }

  bool seeks() const { return pass_ != Pass::none; }

  void add(const Key* keys, int64_t stride, int64_t count) {
    if (pass_ == Pass::counts) {
      depth_ == 0 ? count_first(keys, stride, count) : count_next(keys, stride, count);
    } else {
      gather(keys, stride, count);
    }
  }

  // ranks_of(count) gives the ascending places that are sought, once it is known how many keys
  // count.
  template <typename RanksOf>
  void end_pass(const RanksOf& ranks_of) {
    if (pass_ == Pass::counts) {
      if (depth_ == 0) {
        take_ranks(nodes_[0].members - counts_.back(), ranks_of);
        counts_.back() = 0;
      }
      descend();
    } else {
      const Key* sorted = radix_sort(gathered_.data(), spare_.data(), size_);
      if (depth_ == 0) {
        take_ranks(std::find(sorted, sorted + size_, kNotFinite<Key>) - sorted, ranks_of);
      }
      find([&](const Node& node, int64_t before, int64_t rank) {
        return sorted[before + rank - node.below];
      });
    }
  }

  int64_t count() const { return count_; }
  const std::vector<int64_t>& ranks() const { return ranks_; }
  const std::vector<Key>& found() const { return found_; }  // at each of the ranks

 private:
  static constexpr int kBits = 8 * sizeof(Key);
  static constexpr int64_t kFirstRadix = 1 << 16;
  static constexpr int64_t kRadix = 1 << 8;  // of all digits but the first
  static constexpr int kDigits = 1 + (kBits - 16) / 8;
  static constexpr int64_t kCapacity = int64_t{1} << 15;

  enum class Pass { none, counts, gathers };

  // The keys that share their first depth_ digits, where they have a rank that is sought.
  struct Node {
    Key least;  // of those there could be
    int64_t below;
    int64_t members;
  };

  static int shift_of(int depth) { return kBits - 16 - 8 * depth; }

  void begin_pass(int64_t members) {
    if (members <= kCapacity) {
      pass_ = Pass::gathers;
      size_ = 0;
      gathered_.resize(members + 1);  // one more, that is written before it is known to count
      spare_.resize(members);
    } else {
      pass_ = Pass::counts;
      const auto nodes = static_cast<int64_t>(nodes_.size());
      counts_.assign(depth_ == 0 ? kFirstRadix : (nodes + 1) * kRadix, 0);
    }
  }

  template <typename RanksOf>
  void take_ranks(int64_t count, const RanksOf& ranks_of) {
    count_ = count;
    ranks_ = ranks_of(count);
  }

  // 1 + which of the nodes the key belongs to, or 0.
  int64_t node_of(Key key) const {
    int64_t node = children_[0][key >> shift_of(0)];
    for (int depth = 1; depth < depth_; ++depth) {
      node = children_[depth][node * kRadix + static_cast<uint8_t>(key >> shift_of(depth))];
    }
    return node;
  }

  void count_first(const Key* keys, int64_t stride, int64_t count) {
    int64_t* counts = counts_.data();
    for (int64_t i = 0; i < count; ++i) ++counts[keys[i * stride] >> shift_of(0)];
  }

  void count_next(const Key* keys, int64_t stride, int64_t count) {
    int64_t* counts = counts_.data();
    const int shift = shift_of(depth_);
    for (int64_t i = 0; i < count; ++i) {
      const Key key = keys[i * stride];
      ++counts[node_of(key) * kRadix + static_cast<uint8_t>(key >> shift)];
    }
  }

  void gather(const Key* keys, int64_t stride, int64_t count) {
    Key* to = gathered_.data();
    int64_t size = size_;
    for (int64_t i = 0; i < count; ++i) {
      const Key key = keys[i * stride];
      to[size] = key;
      size += depth_ == 0 || node_of(key) != 0;
    }
    size_ = size;
  }

  // From the counts of the next digit: the nodes one digit further down.
  void descend() {
    std::vector<uint16_t>& children = children_[depth_];
    children.assign(counts_.size(), 0);
    const int64_t radix = depth_ == 0 ? kFirstRadix : kRadix;
    const int64_t* counts = counts_.data() + (depth_ == 0 ? 0 : kRadix);
    std::vector<Node> nodes;
    auto rank = ranks_.begin();
    int64_t members = 0;
    for (const Node& node : nodes_) {
      int64_t below = node.below;
      for (int64_t digit = 0; digit < radix && rank != ranks_.end(); ++digit) {
        const int64_t end = below + counts[digit];
        if (*rank < end) {
          nodes.push_back({static_cast<Key>(node.least | Key(digit) << shift_of(depth_)), below,
                           counts[digit]});
          children[counts + digit - counts_.data()] = static_cast<uint16_t>(nodes.size());
          members += counts[digit];
          rank = std::lower_bound(rank, ranks_.end(), end);
        }
        below = end;
      }
      counts += radix;
    }
    nodes_ = std::move(nodes);
    ++depth_;
    if (depth_ < kDigits && !ranks_.empty()) return begin_pass(members);
    find([](const Node& node, int64_t, int64_t) { return node.least; });
  }

  // Ends the search: key_of(node, keys of the nodes before it, rank).
  template <typename KeyOf>
  void find(const KeyOf& key_of) {
    auto node = nodes_.begin();
    int64_t before = 0;
    for (const int64_t rank : ranks_) {
      for (; rank >= node->below + node->members; ++node) before += node->members;
      found_.push_back(key_of(*node, before, rank));
    }
    pass_ = Pass::none;
  }

  Pass pass_ = Pass::none;
  int depth_ = 0;                            // digits that are known of the keys sought
  std::vector<Node> nodes_;                  // ascending
  std::vector<int64_t> counts_;              // of the next digit, [1 + nodes, digits]
  std::vector<uint16_t> children_[kDigits];  // [1 + nodes, digits] as node_of has it
  std::vector<Key> gathered_, spare_;
  int64_t size_ = 0;   // keys gathered
  int64_t count_ = 0;  // keys that count
  std::vector<int64_t> ranks_;
  std::vector<Key> found_;
};

}  // namespace simmim

// Packs the layouts of which every step sees a window of x.
#include <algorithm>
#include <numeric>

#include "sparse_linear_packed.h"
#include "sparse_linear_packer.h"

namespace simmim {
namespace {

// The columns of one row's kept weights, ascending.
std::vector<int32_t> kept_columns(const PackArgs& args, int64_t row) {
  std::vector<int32_t> columns;
  for (int64_t column = 0; column < args.in_features; ++column) {
    if (args.mask[row * args.in_features + column]) columns.push_back(column);
  }
  return columns;
}

// What each lane takes in each step. Rows are sorted by their count of weights and taken in groups
// of `lanes`; in a step every lane takes its next weight, if the step's window has its column. A
// window is `columns` long, and begins at a multiple of `step` as late as the lane that is the
// farthest behind allows.
struct Schedule {
  Schedule(const PackArgs& args, int64_t lanes, int32_t step, int32_t columns);

  std::vector<int32_t> rows;     // [groups, lanes]; -1 where there is none
  std::vector<int64_t> first;    // [groups + 1] step
  std::vector<int32_t> windows;  // [steps] in multiples of `step`
  std::vector<int32_t> taken;    // [steps, lanes] column within the window; -1: the lane is idle
  std::vector<float> values;     // [steps, lanes] 0 where a lane is idle
};

Schedule::Schedule(const PackArgs& args, int64_t lanes, int32_t step, int32_t columns)
    : rows(args.out_features), first{0} {
  std::vector<std::vector<int32_t>> kept;
  for (int64_t row = 0; row < args.out_features; ++row) kept.push_back(kept_columns(args, row));
  std::iota(rows.begin(), rows.end(), 0);
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int32_t a, int32_t b) { return kept[a].size() < kept[b].size(); });
  rows.resize(divide_up(args.out_features, lanes) * lanes, -1);

  const int64_t beyond = std::max<int64_t>(args.in_features - columns, 0);
  const auto last = static_cast<int32_t>(divide_up(beyond, step));
  for (size_t group = 0; group < rows.size(); group += lanes) {
    std::vector<size_t> done(lanes);
    const auto next = [&](int64_t lane) {  // the column of the lane's next weight, or beyond all
      const int32_t row = rows[group + lane];
      return row < 0 || done[lane] == kept[row].size() ? INT32_MAX : kept[row][done[lane]];
    };
    for (;;) {
      int32_t column = INT32_MAX;
      for (int64_t lane = 0; lane < lanes; ++lane) column = std::min(column, next(lane));
      if (column == INT32_MAX) break;
      windows.push_back(std::min(column / step, last));
      const int32_t begin = windows.back() * step;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const bool takes = next(lane) < begin + columns;
        const int64_t row = rows[group + lane];
        taken.push_back(takes ? next(lane) - begin : -1);
        values.push_back(takes ? args.weight[row * args.in_features + next(lane)] : 0.0f);
        done[lane] += takes;
      }
    }
    first.push_back(static_cast<int64_t>(windows.size()));
  }
}

template <typename Value>
void pack_planes(const PackArgs& args, const Allocate& allocate) {
  const Schedule schedule(args, kPlanesRows, kPlanesStep, kPlanesColumns);
  std::vector<PlanesGroup> groups;
  std::vector<Value> values;
  std::vector<uint8_t> offsets;
  for (size_t group = 0; group < schedule.first.size(); ++group) {
    const int64_t first_step = schedule.first[group];
    groups.push_back({first_step, static_cast<int64_t>(values.size()) / kPlanesLanes});
    if (group + 1 == schedule.first.size()) break;
    const int64_t lanes = planes_lanes(&schedule.rows[group * kPlanesRows]);
    for (int64_t step = first_step; step < schedule.first[group + 1]; ++step) {
      for (int64_t first = 0; first < lanes; first += kPlanesLanes) {
        const auto part = static_cast<int64_t>(values.size());
        values.resize(part + kPlanesLanes);
        offsets.resize(part + kPlanesLanes);
        for (int64_t lane = 0; lane < kPlanesLanes; ++lane) {
          const int64_t i = step * kPlanesRows + first + lane;
          if (schedule.taken[i] < 0) continue;
          store(schedule.values[i], &values[part + planes_value<Value>(lane)]);
          offsets[part + planes_byte(lane)] = kTaken + schedule.taken[i];
        }
      }
    }
  }
  write_packed(args, allocate, groups, schedule.rows, values, offsets, schedule.windows);
}

}  // namespace

void pack_window_cpu(const PackArgs& args, const Allocate& allocate) {
  const Schedule schedule(args, kWindowRows, kWindowVector, 2 * kWindowVector);
  std::vector<WindowGroup> groups;
  std::vector<float> values;
  std::vector<uint8_t> offsets;
  for (size_t group = 0; group < schedule.first.size(); ++group) {
    const int64_t step = schedule.first[group];
    for (auto i = static_cast<int64_t>(offsets.size()); i < step * kWindowRows; ++i) {
      const int32_t column = schedule.taken[i];
      offsets.push_back(column < 0 ? 0 : kTaken + column);
      if (column >= 0) values.push_back(schedule.values[i]);
    }
    groups.push_back({step, static_cast<int64_t>(values.size())});
  }
  values.resize(values.size() + kWindowVector);  // whole vectors are read
  write_packed(args, allocate, groups, schedule.rows, values, offsets, schedule.windows);
}

void pack_planes_cpu(const PackArgs& args, const Allocate& allocate) {
  args.is_bfloat16 ? pack_planes<BFloat16>(args, allocate) : pack_planes<float>(args, allocate);
}

}  // namespace simmim

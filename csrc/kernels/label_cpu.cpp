#include <algorithm>
#include <numeric>
#include <vector>

#include "label.h"
#include "label_groups.h"

namespace simmim {

void label_information_cpu(const LabelInformationArgs& args, int64_t feature_begin,
                           int64_t feature_end) {
  std::vector<int64_t> in_class(static_cast<size_t>(args.groups));
  for (int64_t feature = feature_begin; feature < feature_end; ++feature) {
    const int64_t* counts = args.counts + feature * args.feature_stride;
    int64_t total[256] = {};
    int64_t samples = 0;
    for (int64_t group = 0; group < args.groups; ++group) {
      const int64_t* own = counts + group * args.group_stride;
      in_class[group] = std::accumulate(own, own + args.bins, int64_t{0});
      samples += in_class[group];
      for (int bin = 0; bin < args.bins; ++bin) total[bin] += own[bin];
    }
    const double x = entropy_of_counts(args.terms, samples, args.bins, total, args.bins);
    const double y =
        entropy_of_counts(args.terms, samples, args.classes, in_class.data(), args.groups);
    const double joint =
        entropy_of_cells(args.terms, samples, args.bins * args.classes, [&](auto&& visit) {
          for (int64_t group = 0; group < args.groups; ++group) {
            const int64_t* own = counts + group * args.group_stride;
            for (int bin = 0; bin < args.bins; ++bin) visit(own[bin]);
          }
        });
    args.result[feature] = information(args.information, x, y, joint);
  }
}

void sorted_label_information_cpu(const SortedLabelInformationArgs& args, int64_t feature_begin,
                                  int64_t feature_end) {
  std::vector<uint8_t> sorted(static_cast<size_t>(args.samples));  // codes in order of label
  std::vector<int64_t> in_class(static_cast<size_t>(args.groups.count)), counters;
  for (int64_t feature = feature_begin; feature < feature_end; ++feature) {
    const uint8_t* codes = args.x + feature * args.samples;
    for (int64_t i = 0; i < args.samples; ++i) sorted[i] = codes[args.order[i]];

    int64_t total[256] = {};
    for (int64_t group = 0; group < args.groups.count; ++group) {
      in_class[group] = 0;
      for (int64_t i = args.groups.begin[group]; i < args.groups.begin[group + 1]; ++i) {
        ++total[sorted[i]];
        in_class[group] += sorted[i] < args.bins;
      }
    }
    const int64_t samples = std::accumulate(total, total + args.bins, int64_t{0});
    const double x = entropy_of_counts(args.terms, samples, args.bins, total, args.bins);
    const double y =
        entropy_of_counts(args.terms, samples, args.classes, in_class.data(), args.groups.count);
    const double joint =
        entropy_of_cells(args.terms, samples, args.bins * args.classes, [&](auto&& visit) {
          visit_groups(
              args.groups, args.bins, counters,
              [&](int64_t i) { return sorted[i] < args.bins ? int64_t{sorted[i]} : int64_t{-1}; },
              visit);
        });
    args.result[feature] = information(args.information, x, y, joint);
  }
}

}  // namespace simmim

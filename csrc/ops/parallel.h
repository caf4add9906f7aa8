// Fans independent tasks out over torch.get_num_threads() threads.
#pragma once

#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace simmim {

// What all threads of parallel_tasks may take for their work. Besides it a call has its arguments
// and results, and some have a copy of an argument in another type or order.
constexpr int64_t kMostScratch = int64_t{64} << 20;

// A process that was forked has none of the pool's threads, and would wait for them forever.
inline std::atomic<bool> is_forked{false};
inline const int watches_forks = pthread_atfork(nullptr, nullptr, [] { is_forked = true; });

// How many threads parallel_tasks would use for so many tasks, where each takes so much scratch.
inline int64_t threads_for(int64_t tasks, int64_t scratch = 0) {
  if (at::in_parallel_region() || is_forked) return 1;
  if (scratch > 0) tasks = std::min(tasks, kMostScratch / scratch);
  return std::max<int64_t>(1, std::min<int64_t>(tasks, at::get_num_threads()));
}

// Calls task(0), ..., task(tasks - 1), each once, in no fixed order. The
// first exception stops the tasks not yet begun and is rethrown. The threads are those of torch's
// own pool, which wait for work busily and would be in the way of any others.
template <typename Task>
void parallel_tasks(int64_t tasks, const Task& task, int64_t scratch = 0) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&](int64_t, int64_t) {
    try {
      for (int64_t i; (i = next.fetch_add(1)) < tasks;) task(i);
    } catch (...) {
      next = tasks;
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  const int64_t threads = threads_for(tasks, scratch);
  threads == 1 ? work(0, 1) : at::parallel_for(0, threads, 1, work);
  if (error) std::rethrow_exception(error);
}

// Operations that make a thread worth its start.
constexpr int64_t kThreadWork = int64_t{1} << 19;

// Calls range(begin, end) over a partition of [0, count), in as many parts as there are threads and
// as `work`, the operations that all of it takes, is worth.
template <typename Range>
void parallel_ranges(int64_t count, int64_t work, const Range& range, int64_t scratch = 0) {
  const int64_t parts = threads_for(std::min(count, work / kThreadWork), scratch);
  parallel_tasks(
      parts, [&](int64_t part) { range(count * part / parts, count * (part + 1) / parts); },
      scratch);
}

// The parts in which threads share a matrix [samples, features]: chunks of samples, read as they
// lie in memory, each with a result of its own, while these are small beside the samples; else
// blocks of features.
struct MatrixParts {
  int64_t samples, features, blocks, chunks;

  // result: bytes of one feature's, where each chunk has its own.
  MatrixParts(int64_t samples, int64_t features, int64_t result = 0)
      : samples(samples), features(features) {
    constexpr int64_t kGrain = int64_t{1} << 16;  // elements worth a second thread
    constexpr int64_t kMinFeatures = 64;          // a few cache lines of every row
    constexpr int64_t kMinSamples = 4096;
    constexpr int64_t kResults = int64_t{16} << 20;
    // Sums of a strip, and a result where features are too few to share them out.
    constexpr int64_t kScratch = int64_t{3} << 18;
    const int64_t threads = threads_for(samples * features / kGrain, kScratch);
    const int64_t kept = kResults / std::max<int64_t>(1, features * result);
    chunks = std::clamp<int64_t>(std::min(samples / kMinSamples, kept), 1, threads);
    blocks = std::clamp<int64_t>(features / kMinFeatures, 1, threads / chunks);
    if (features < 2 * kMinFeatures) chunks = threads;
  }

  // Calls part(chunk, feature_begin, feature_end, sample_begin, sample_end) for each of them.
  template <typename Part>
  void run(const Part& part) const {
    parallel_tasks(blocks * chunks, [&](int64_t task) {
      const int64_t block = task / chunks, chunk = task % chunks;
      part(chunk, features * block / blocks, features * (block + 1) / blocks,
           samples * chunk / chunks, samples * (chunk + 1) / chunks);
    });
  }
};

}  // namespace simmim
